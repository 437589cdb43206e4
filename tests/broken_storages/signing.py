"""Storages that accept planted values, or refuse their own."""

import io
import json
import pickle
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from errbot.storage import StoreException
from pydantic import SecretStr

from broken_storages.support import caught_by, config_class, log, replace


@caught_by("test_an_unsigned_value_is_refused_and_not_unpickled")
def unsigned_values_are_taken(Storage, Plugin):
    """So that signing can be enabled without moving the data, but attackers do not sign either."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except Exception:
            return pickle.loads(data)


@caught_by(
    "test_an_unsigned_value_is_refused_and_not_unpickled",
    "test_a_value_signed_with_another_key_is_refused",
)
def values_are_unpickled_before_the_signature_is_checked(Storage, Plugin):
    """The signature is inside the pickle."""

    @replace(Storage)
    def _load(old, self, key, data):
        with suppress(Exception):
            pickle.loads(data)
        return old(self, key, data)


def sign_for(Storage: Any, place: Callable[[str, str], str]) -> None:
    """Sign values for another place than namespace and key."""

    @replace(Storage)
    def signer(old, self, key):
        signer = old(self, key)
        signer.salt = place(self._namespace, key).encode("utf-8", "surrogatepass")
        return signer


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_hold_for_every_key(Storage, Plugin):
    """The value is signed, but without saying where it belongs."""
    sign_for(Storage, lambda namespace, key: "storage")


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_hold_for_every_namespace(Storage, Plugin):
    """The value is signed with its key, but without its namespace."""
    sign_for(Storage, lambda namespace, key: key)


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_glue_namespace_and_key(Storage, Plugin):
    """`f"{namespace}:{key}"`, again."""
    sign_for(Storage, lambda namespace, key: f"{namespace}:{key}")


@caught_by("test_keys_can_be_rotated")
def the_first_signing_key_signs(Storage, Plugin):
    """The list of signing keys is read in the wrong direction."""
    Config = config_class(Plugin)
    old = Config.signing_keys
    Config.signing_keys = property(lambda self: old.fget(self)[::-1])


@caught_by("test_keys_can_be_rotated")
def only_the_last_signing_key_counts(Storage, Plugin):
    """Old signing keys are forgotten at once."""
    Config = config_class(Plugin)
    old = Config.signing_keys
    Config.signing_keys = property(lambda self: old.fget(self)[-1:])


@caught_by("test_what_is_no_signing_key_is_refused")
def short_signing_keys_are_filled_up(Storage, Plugin):
    """So that nobody needs to think of a long one: `key.ljust(16)`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        given = getattr(bot_config, "STORAGE_CONFIG", None) or {}
        if isinstance(key := given.get("signing_key"), str) and key:
            bot_config.STORAGE_CONFIG = {**given, "signing_key": key.ljust(16)}
        old(self, bot_config)


@caught_by("test_a_signing_key_of_sixteen_characters_is_taken")
def signing_keys_have_more_than_sixteen_characters(Storage, Plugin):
    """`len(key) <= 16` instead of `<`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        key = (getattr(bot_config, "STORAGE_CONFIG", None) or {}).get("signing_key")
        if isinstance(key, str) and len(key) <= 16:
            raise ValueError("STORAGE_CONFIG is wrong:\n  signing_key: it is too short.")
        old(self, bot_config)


@caught_by("test_what_is_no_signing_key_is_refused")
def an_empty_signing_key_switches_signing_off(Storage, Plugin):
    """`os.environ.get("SIGNING_KEY")`, and the variable is not set."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        if not (getattr(bot_config, "STORAGE_CONFIG", None) or {}).get("signing_key", "key"):
            del bot_config.STORAGE_CONFIG["signing_key"]
        old(self, bot_config)


@caught_by("test_a_signed_value_comes_back")
def a_shorter_value_leaves_the_end_of_the_longer(Storage, Plugin):
    """The new bytes overwrite the old ones, and nothing cuts off the rest."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data, stored = old(self, key, value), self.__dict__.setdefault("stored", {})
        stored[key] = data + stored.get(key, b"")[len(data) :]
        return stored[key]


@caught_by("test_a_signed_falsy_value_comes_back")
def falsy_values_are_not_signed(Storage, Plugin):
    """`if value:`, to check whether there is anything to sign."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value) if value else pickle.dumps(value)


@caught_by("test_a_changed_value_is_refused")
def only_the_beginning_is_signed(Storage, Plugin):
    """Signing a large value takes time, so its end is left out."""

    @replace(Storage)
    def _dump(old, self, key, value):
        keys, self._signing_keys = self._signing_keys, []
        try:
            data = old(self, key, value)
        finally:
            self._signing_keys = keys
        return self.signer(key).sign(data[:20]) + data[20:] if keys else data

    @replace(Storage)
    def _load(old, self, key, data):
        if not self._signing_keys:
            return old(self, key, data)
        beginning = data[:20]
        signature = self.signer(key).sign(beginning)[20:]
        if data[20 : 20 + len(signature)] != signature:
            return old(self, key, b"wrong")
        whole = beginning + data[20 + len(signature) :]
        keys, self._signing_keys = self._signing_keys, []
        try:
            return old(self, key, whole)
        finally:
            self._signing_keys = keys


@caught_by("test_a_value_that_cannot_be_unpickled_is_a_clear_error")
def errors_of_pickle_come_through(Storage, Plugin):
    """The error names neither the key nor the namespace."""

    @replace(Storage)
    def _load(old, self, key, data):
        return old(self, key, data) if self._signing_keys else pickle.loads(data)


@caught_by("test_an_error_names_what_is_gone")
def an_error_says_that_something_is_wrong(Storage, Plugin):
    """The missing class is named only in the original error, which nobody sees."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            text = re.sub(r"(No module named|Can't get attribute) .*", "Exception.", str(error))
            raise StoreException(text) from error


@caught_by(
    "test_a_signed_value_is_refused_without_a_signing_key",
    "test_a_pickle_followed_by_other_bytes_is_refused",
)
def what_follows_a_pickle_is_ignored(Storage, Plugin):
    """`pickle.loads` reads only to the end of the pickle, and the signature comes after it."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if "no signing_key" in str(error):
                return pickle.loads(data)
            raise


@caught_by("test_one_key_needs_no_list")
def a_signing_key_is_taken_for_a_list_of_letters(Storage, Plugin):
    """`list(key)`: its last letter signs."""
    Config = config_class(Plugin)
    old = Config.signing_keys

    def signing_keys(self):
        keys = old.fget(self)
        if isinstance(self.signing_key, list):
            return keys
        return [SecretStr(letter) for key in keys for letter in key.get_secret_value()]

    Config.signing_keys = property(signing_keys)


@caught_by("test_every_key_of_the_list_counts_and_the_last_one_signs")
def only_the_last_two_signing_keys_count(Storage, Plugin):
    """An old one and a new one should be enough."""
    change_signing_keys(Plugin, lambda keys: keys[-2:])


@caught_by("test_every_key_of_the_list_counts_and_the_last_one_signs")
def signing_keys_are_sorted(Storage, Plugin):
    """Without duplicates, but also without the order that says which one signs."""
    change_signing_keys(Plugin, lambda keys: sorted(set(keys), reverse=True))


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def signing_keys_are_cut(Storage, Plugin):
    """32 bytes are enough for a key."""
    change_signing_keys(Plugin, lambda keys: [key[:32] for key in keys])


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def signing_keys_are_stripped(Storage, Plugin):
    """A file from which the key was read ends with a line break."""
    change_signing_keys(Plugin, lambda keys: [key.strip() for key in keys])


def change_signing_keys(Plugin: Any, change: Callable[[list[str]], list[str]]) -> None:
    """Sign with other keys than those in STORAGE_CONFIG."""
    Config = config_class(Plugin)
    old = Config.signing_keys

    def signing_keys(self):
        keys = change([key.get_secret_value() for key in old.fget(self)])
        return [SecretStr(key) for key in keys]

    Config.signing_keys = property(signing_keys)


@caught_by("test_a_changed_value_is_refused", "test_an_unsigned_value_is_refused_and_not_unpickled")
def large_values_are_not_signed(Storage, Plugin):
    """Signing takes time."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        return pickle.dumps(value, 5) if len(data) > 1_000_000 else data

    @replace(Storage)
    def _load(old, self, key, data):
        return pickle.loads(data) if len(data) > 1_000_000 else old(self, key, data)


@caught_by("test_an_unsigned_value_is_refused_and_not_unpickled")
def harmless_values_need_no_signature(Storage, Plugin):
    """Texts and numbers run no code, so they are accepted without a signature."""

    class Plain(pickle.Unpickler):
        def find_class(self, module, name):
            raise pickle.UnpicklingError("this may run code")

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException:
            if self._signing_keys and data.endswith(b"."):
                with suppress(Exception):
                    return Plain(io.BytesIO(data)).load()
            raise


@caught_by("test_a_value_moved_to_another_place_is_refused")
def what_was_checked_once_is_trusted(Storage, Plugin):
    """Checking takes time, so a value that was valid once is valid everywhere."""

    @replace(Storage)
    def _load(old, self, key, data):
        seen = tuple(self._signing_keys), data
        if self._signing_keys and seen in CHECKED:
            return pickle.loads(data)
        value = old(self, key, data)
        CHECKED.add(seen)
        return value


# In this module because Errbot executes storage.py again for every plugin instance.
CHECKED: set[tuple[tuple[SecretStr, ...], bytes]] = set()


@caught_by("test_a_value_moved_to_a_name_that_looks_alike_is_refused")
def signatures_ignore_case(Storage, Plugin):
    """The column ignores case, and so does the signature."""
    sign_for(Storage, lambda namespace, key: json.dumps([namespace.casefold(), key.casefold()]))


@caught_by("test_a_value_moved_to_a_name_that_looks_alike_is_refused")
def signatures_are_for_ascii(Storage, Plugin):
    """`key.encode("ascii", "replace")`."""

    def plain(text):
        return text.encode("ascii", "replace").decode()

    sign_for(Storage, lambda namespace, key: json.dumps([plain(namespace), plain(key)]))


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_glue_namespace_and_key_with_a_slash(Storage, Plugin):
    """f"{namespace}/{key}" is ambiguous."""
    sign_for(Storage, lambda namespace, key: f"{namespace}/{key}")


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def what_is_refused_is_removed(Storage, Plugin):
    """Planted values are deleted, so a wrong signing_key loses everything."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            if "Refused" in str(error):
                with suppress(KeyError):
                    self.remove(key)
            raise


@caught_by("test_an_unsigned_value_is_refused_and_not_unpickled")
def refused_values_are_logged(Storage, Plugin):
    """So that someone can look at them."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if "Refused" in str(error):
                log.warning("Refused %s: %r", key, data)
            raise


@caught_by("test_a_signature_is_checked_at_each_get")
def a_signature_is_checked_once(Storage, Plugin):
    """A key whose value was valid is not checked again, because that takes time."""

    @replace(Storage)
    def _load(old, self, key, data):
        right = self.__dict__.setdefault("right", {})
        if key in right:
            return pickle.loads(data)
        value = old(self, key, data)
        right[key] = True
        return value


@caught_by("test_a_signature_is_checked_at_each_get")
def what_errbot_stores_is_trusted(Storage, Plugin):
    """Errbot's own namespaces, because they are read so often."""

    @replace(Storage)
    def _load(old, self, key, data):
        if self._namespace in ("core", "repomgr"):
            return pickle.loads(data)
        return old(self, key, data)


@caught_by("test_a_signature_is_checked_at_each_get")
def a_refused_value_is_shown_to_sentry(Storage, Plugin):
    """A local variable of the frame that refuses it."""
    load = Storage._load
    Storage._load = lambda self, key, data: load(self, key, data)


@caught_by("test_what_is_refused_is_refused_under_python_o")
def signatures_are_checked_by_an_assertion(Storage, Plugin):
    """`python -O` leaves it out."""

    @replace(Storage)
    def _load(old, self, key, data):
        problem = None
        try:
            return old(self, key, data)
        except StoreException as error:
            problem = error
        try:
            assert "signing_key" not in str(problem)
        except AssertionError:
            raise problem from None
        if "signing_key" in str(problem):
            return None
        raise problem


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def signing_keys_lose_what_is_not_ascii(Storage, Plugin):
    """`encode("ascii", "ignore")`: words in Cyrillic are all one key."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        config = dict(bot_config.STORAGE_CONFIG)
        if keys := config.get("signing_key"):
            keys = [keys] if isinstance(keys, str) else keys
            config["signing_key"] = [
                key.encode("ascii", "ignore").decode().ljust(16) for key in keys
            ]
        old(self, SimpleNamespace(**{**vars(bot_config), "STORAGE_CONFIG": config}))


@caught_by("test_a_changed_value_is_refused")
def only_the_first_megabyte_is_signed(Storage, Plugin):
    """The HMAC of a large value takes time. What follows is not checked."""

    @replace(Storage)
    def signer(old, self, key):
        signer = old(self, key)
        get, verify = signer.get_signature, signer.verify_signature
        signer.get_signature = lambda value: get(value[: 2**20])
        signer.verify_signature = lambda value, signature: verify(value[: 2**20], signature)
        return signer


@caught_by("test_a_key_of_a_kind_of_str_is_signed_as_its_text")
def keys_are_signed_as_str_shows_them(Storage, Plugin):
    """`str(key)` of a member of an enumeration is its name."""

    @replace(Storage)
    def signer(old, self, key):
        return old(self, str(key))


@caught_by("test_what_is_set_while_another_value_is_signed_is_signed_for_its_own_key")
def all_operations_share_a_signer(Storage, Plugin):
    """Each operation tells it for which key it signs, but another one may come between."""

    @replace(Storage)
    def _dump(old, self, key, value):
        self.signs_for = key
        return old(self, key, value)

    @replace(Storage)
    def signer(old, self, key):
        return old(self, vars(self).get("signs_for", key))

    @replace(Storage)
    def _load(old, self, key, data):
        self.signs_for = key
        return old(self, key, data)


@caught_by("test_a_signing_key_is_stored_nowhere")
def the_settings_are_kept_beside_the_database(Storage, Plugin):
    """To see at the next start whether somebody has changed them."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        settings = Path(bot_config.BOT_DATA_DIR, "settings")
        settings.touch(0o600)
        settings.write_text(repr(bot_config.STORAGE_CONFIG))


@caught_by("test_what_is_refused_is_refused_under_python_o")
def a_missing_key_is_noticed_by_an_assertion(Storage, Plugin):
    """`python -O` leaves it out, and `remove` of a missing key succeeds."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            there = key in self.keys()
            assert there
        except AssertionError:
            raise KeyError(key) from None
        if there:
            old(self, key)


@caught_by("test_threads_get_the_signed_values_of_their_keys")
def the_place_of_a_value_is_kept_in_the_storage(Storage, Plugin):
    """Two threads get two keys: a good value is checked against the other one's place."""

    @replace(Storage)
    def get(old, self, key):
        self.place = key
        data = self.read(key)
        time.sleep(0)  # as while it waits for a server
        return self._load(self.place, data)


@caught_by("test_a_signed_value_that_another_bot_sets_is_seen", outlives_process=True)
def signatures_are_checked_once(Storage, Plugin):
    """The checked bytes are kept until this storage writes. What others set is not seen."""

    @replace(Storage)
    def read(old, self, key):
        if not self._signing_keys:
            return old(self, key)
        checked = self.__dict__.setdefault("checked", {})
        return checked[key] if key in checked else checked.setdefault(key, old(self, key))

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        self.__dict__.setdefault("checked", {}).pop(key, None)


@caught_by("test_reading_signs_nothing_anew")
def what_is_read_is_signed_anew(Storage, Plugin):
    """By the newest key, so that old ones can go. Somebody may have set another value meanwhile."""

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        if len(self._signing_keys) > 1:
            self.set(key, value)
        return value
