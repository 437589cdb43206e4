"""Storages that break `errbot --storage-get` and similar commands."""

from broken_storages.support import caught_by, replace


@caught_by("test_storage_get_of_a_new_namespace_prints_an_empty_dict")
def the_plugin_prints(Storage, Plugin):
    """print() instead of a logger: it ends up in the output of `errbot --storage-get`."""

    @replace(Plugin)
    def open(old, self, namespace):
        print(f"Connected to {namespace}.")
        return old(self, namespace)
