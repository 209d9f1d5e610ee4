"""The frame of every page; what it does in a browser: test_page.py and test_sweep_report.py."""

import base64
import hashlib
import json
import re

from charrnn_jax.reports.page import COLOURS, make_page


def test_the_policy_permits_the_script_of_the_page_and_no_other() -> None:
    page = make_page("", title="", style="", script="let x = '</p>'; // ü\n")
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page, re.DOTALL)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.count("<script") == 1


def test_no_text_in_the_data_or_the_title_ends_its_element() -> None:
    text = "</script></title><script>1</script><!--&lt;\u2028ü\ud800"
    page = make_page("", title=text[:-1], style="", script="", data={"text": text})
    assert page.count("<script") == 2
    assert page.count("</title>") == 1
    assert "&lt;/title&gt;&lt;script&gt;" in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert data.isascii()
    assert json.loads(data) == {"text": text}


def test_every_colour_that_the_shared_style_names_is_there_in_light_and_dark() -> None:
    page = make_page("", title="", style="", script="")
    fonts = {"mono", "serif", "sans"}
    assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= set(COLOURS) | fonts
    for name, (light, dark) in COLOURS.items():
        assert page.count(f"--{name}: {light};") >= 1
        assert page.count(f"--{name}: {dark};") >= 1
