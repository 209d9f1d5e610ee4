"""Writes config.md, the list of all fields, from the comments of `default_config`.

Run `python docs/generate_config.py` after a change of the schema; a test holds that the page is
current.
"""

import inspect
import re
from pathlib import Path

from charrnn_jax.config import default_config, flatten

PAGE = Path(__file__).with_name("config.md")
_ABOUT = """\
# Config

<!-- Written by generate_config.py; do not edit. -->

Every field of a config, with its default. An experiment file sets the fields that differ:

```python
import charrnn_jax


def get_config():
    config = charrnn_jax.default_config()
    config.model.hidden_size = 512
    return config
```

On the command line a field is a flag: `--config.model.hidden_size=512`. A misspelt field, a value
of the wrong type and a value out of range are refused before anything is written.
"""
_HEAD = "| field | default | meaning |\n|---|---|---|\n"
_FIELD = re.compile(r"config\.(\w+(?:\.\w+)?) = .*?  # (.*)")


def page() -> str:
    """Returns the text of config.md."""
    comments = dict(_FIELD.findall(inspect.getsource(default_config)))
    sections: dict[str, list[str]] = {}
    defaults = flatten(default_config())
    for name, comment in comments.items():  # in the order of the schema
        default = defaults[name]
        section = name.rpartition(".")[0] or "Top level"
        value = f'"{default}"' if isinstance(default, str) else default
        sections.setdefault(section, []).append(f"| `{name}` | `{value}` | {comment} |")
    tables = [f"\n## {name}\n\n{_HEAD}" + "\n".join(rows) for name, rows in sections.items()]
    return _ABOUT + "\n".join(tables) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
