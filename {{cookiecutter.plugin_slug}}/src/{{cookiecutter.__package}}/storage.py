{% include cookiecutter.database ~ "/storage.py" -%}
