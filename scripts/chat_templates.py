#!/usr/bin/env python3
"""Writes tests/data/chat/expected.json: what transformers' jinja2 makes of the templates there.

The templates are as the models' authors published them, under the Apache or the MIT licence. Needs transformers and jinja2.
"""

import datetime
import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

FOLDER = pathlib.Path(__file__).parent.parent / "tests/data/chat"
NOW = datetime.datetime(2026, 7, 4, 5, 6, 7, tzinfo=datetime.timezone.utc)
USER = {"role": "user", "content": "What is 2 + 2?\n<b>\"it's\"</b> & é"}
SYSTEM = {"role": "system", "content": "Be brief."}


def rendered(source, messages):
    environment = _compile_jinja_template(source).environment
    environment.globals["strftime_now"] = NOW.strftime
    try:
        return environment.from_string(source).render(
            messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
    except Exception as refused:
        return {"refused": str(refused)}


def main():
    expected = {
        path.stem: {"user": rendered(path.read_text(), [USER]), "system": rendered(path.read_text(), [SYSTEM, USER])}
        for path in sorted(FOLDER.glob("*.jinja"))
    }
    document = {"now": int(NOW.timestamp()), "user": USER["content"], "system": SYSTEM["content"], "expected": expected}
    (FOLDER / "expected.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
