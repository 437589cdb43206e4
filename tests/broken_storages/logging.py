"""Storages that show values in the log, in an error, or on the screen."""

import pickle
import sys
import threading
import time
import warnings
from base64 import b64encode

from errbot.storage import StoreException

from broken_storages.support import caught_by, lock_for_forks, log, replace


@caught_by("test_no_value_stands_in_the_log")
def values_are_logged(Storage, Plugin):
    """A forgotten debugging line."""

    @replace(Storage)
    def set(old, self, key, value):
        log.debug("set %s = %r", key, value)
        old(self, key, value)


@caught_by("test_no_value_stands_in_the_log")
def what_cannot_be_unpickled_is_logged(Storage, Plugin):
    """An error is logged with everything that could help, including the value."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except Exception:
            log.exception("Cannot unpickle %s: %r", key, data)
            raise


@caught_by("test_no_value_stands_in_the_log", alone=True)
def values_are_printed(Storage, Plugin):
    """`print` instead of a debugger, for dicts, such as settings. It goes to the service's log."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(value) is dict:
            print("set", key, value, file=sys.stderr)
        old(self, key, value)


@caught_by("test_no_value_stands_in_the_log")
def warnings_show_the_value(Storage, Plugin):
    """A warning about large values, with the beginning of the value."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if isinstance(value, str) and len(value) > 100:
            warnings.warn(f"The value of {key} is large: {value:.50}", stacklevel=2)


@caught_by("test_no_value_stands_in_an_error")
def errors_of_set_show_the_value(Storage, Plugin):
    """ "Cannot store ...", and what."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except (TypeError, AttributeError, pickle.PicklingError):
            raise TypeError(f"Cannot store {key!r}: {value!r}") from None


@caught_by("test_no_value_stands_in_an_error", alone=True)
def errors_of_get_show_the_data(Storage, Plugin):
    """Values that cannot be unpickled are shown, so that someone can look at them."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if "Cannot unpickle" in str(error) and b"Unreadable" in data:
                raise StoreException(f"{error} It is {data!r}") from None
            raise


@caught_by("test_no_frame_of_an_error_of_get_shows_a_value", alone=True)
def a_frame_of_get_holds_the_data(Storage, Plugin):
    """A local variable of the function that raises, which Errbot sends to Sentry."""
    load = Storage._load
    Storage._load = lambda self, key, data: load(self, key, data)


@caught_by("test_no_value_stands_in_the_log")
def what_is_sent_is_logged_in_base64(Storage, Plugin):
    """The body of each request, as it is sent."""

    @replace(Storage)
    def write(old, self, key, data):
        log.debug("PUT %s", b64encode(data).decode())
        old(self, key, data)


@caught_by("test_no_value_stands_in_the_log")
def statements_are_logged_in_hexadecimal(Storage, Plugin):
    """Statements with their values, as a database's own log has them."""

    @replace(Storage)
    def write(old, self, key, data):
        log.debug("INSERT INTO errbot VALUES (X'%s')", data.hex().upper())
        old(self, key, data)


@caught_by("test_no_value_stands_in_the_log")
def the_beginning_of_a_value_is_logged(Storage, Plugin):
    """Twelve characters, to recognize it. Passwords and PINs are not longer."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if isinstance(value, str):
            log.debug("Set %r to %r...", key, value[:12])


@caught_by("test_a_slow_operation_logs_no_value", alone=True)
def slow_operations_are_logged(Storage, Plugin):
    """With everything that they were given, as many clients do."""

    @replace(Storage)
    def set(old, self, key, value):
        began = time.monotonic()
        old(self, key, value)
        if time.monotonic() - began > 5:
            log.warning("Slow: set %s = %.300r", key, value)


@caught_by("test_ordinary_operations_are_no_problems_in_the_log", alone=True)
def a_missing_key_is_a_warning(Storage, Plugin):
    """Each default value of a plugin is one more line of the log."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            log.warning("There is no key %s in %s.", ascii(key), ascii(self._namespace))
            raise


@caught_by("test_a_log_handler_may_use_the_storage", alone=True)
def large_values_are_logged_under_a_lock(Storage, Plugin):
    """A handler that stores the last warnings waits for the lock of its own thread."""
    lock = lock_for_forks(threading.Lock)

    @replace(Storage)
    def write(old, self, key, data):
        with lock:
            if len(data) > 1_000_000:
                log.warning("A value of %s has %d bytes.", ascii(self._namespace), len(data))
            old(self, key, data)


@caught_by("test_no_value_stands_in_the_log")
def values_are_in_the_extra_fields_of_records(Storage, Plugin):
    """`extra=` does not show in the message, but formatters for JSON and Sentry show it."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        log.debug("stored a value", extra={"stored": repr(value)})


@caught_by("test_ordinary_operations_do_not_fill_the_log", alone=True)
def each_operation_is_logged_at_info(Storage, Plugin):
    """It seemed useful while the author looked at the log."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        log.info("stored %s", key)


@caught_by("test_no_frame_of_an_error_of_get_shows_a_value")
def an_error_is_logged_with_all_its_frames(Storage, Plugin):
    """`log.exception`, in the function that holds the value."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return pickle.loads(data) if not self._signing_keys else old(self, key, data)
        except AttributeError:
            log.error("Cannot read a value.", exc_info=True)
            del data
            raise StoreException("Cannot read a value.") from None


@caught_by("test_a_log_handler_may_use_the_storage", outlives_process=True)
def each_connection_is_logged_under_a_lock(Storage, Plugin):
    """So that the numbers are right. But only threads that work at once need more than one."""
    lock = lock_for_forks(threading.Lock)

    @replace(Plugin)
    def _take(old, self):
        with lock:
            if not self._idle:
                log.info("Another connection.")
            return old(self)
