"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot."""
