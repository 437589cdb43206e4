"""Storages that `errbot --storage-get` and its like do not get on with."""

from broken_storages.support import caught_by, replace


@caught_by("test_storage_get_of_a_new_namespace_prints_an_empty_dict")
def the_plugin_prints(Storage, Plugin):
    """print() instead of a logger: `errbot --storage-get` has it in its output."""

    @replace(Plugin)
    def open(old, self, namespace):
        print(f"Connected to {namespace}.")
        return old(self, namespace)
