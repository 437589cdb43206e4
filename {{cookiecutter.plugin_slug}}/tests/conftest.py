{% include cookiecutter.database ~ "/conftest.py" -%}
