import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from helpers import SMOKE, last_line_of_error

from charrnn_jax.commands.arguments import read_prompt
from charrnn_jax.generation.rules import TopK
from charrnn_jax.main import main
from charrnn_jax.registry import register_rule


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a text that is none of HTML's, JSON's or a terminal's friends."""
    folder = tmp_path_factory.mktemp("hostile")
    text = folder / "text.txt"
    text.write_bytes(("</script>\"'\\ <!-- 🙂 é漢\x00\u2028\x1b[31m\n" * 150).encode())
    own = [f"--config.data.path={text}", "--config.sample.prompt=<"]
    assert main([SMOKE, f"--workdir={folder / 'run'}", *own]) == 0
    return folder / "run"


def command(trained: Path, *flags: str) -> list[str]:
    return ["sample", f"--workdir={trained}", "--num_chars=40", *flags]


def on_terminal(arguments: list[str]) -> tuple[int, str]:
    """Runs a command whose standard output and error are a terminal: (exit code, what it shows)."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # a progress bar needs a width
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with (
        open(theirs, "w", encoding="utf-8") as terminal,
        contextlib.redirect_stdout(terminal),
        contextlib.redirect_stderr(terminal),
    ):
        code = main(arguments)
    reader.join()
    os.close(ours)
    return code, b"".join(pieces).decode().replace("\r\n", "\n")


def test_json_holds_every_text_in_ascii_a_line_each(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    prompt = '</script>🙂\x00\u2028"'
    flags = ["--json", f"--prompt={prompt}", "--prompt=é", "--num_samples=2", "--stop=\n"]
    assert main(command(trained, *flags)) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    samples = [json.loads(line) for line in out.splitlines()]
    assert [sample["prompt"] for sample in samples] == [prompt, prompt, "é", "é"]
    for sample in samples:
        assert sample["finish"] in ("stop", "length")
        assert sample["num_chars"] == len(sample["text"]) <= 40
        assert "\n" not in sample["text"]
    assert main(command(trained, "--json", "--prompt=é", "--stop=\n")) == 0
    assert json.loads(capsys.readouterr().out)["text"] == samples[2]["text"]
    assert main(command(trained, "--json", "--prompt=é", "--pattern=é?", "--forbid=é")) == 0
    empty = json.loads(capsys.readouterr().out)
    assert (empty["text"], empty["finish"], empty["nats_per_char"]) == ("", "match", None)


def test_a_streamed_text_is_the_text_and_a_prompt_comes_from_a_file_or_standard_input(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = ["--temperature=0.7", "--top_k=9", "--top_p=0.9", "--min_p=0.01", "--no_repeat=20"]
    assert main(command(trained, "--prompt=é漢\n<", *rules)) == 0
    expected = capsys.readouterr().out
    (tmp_path / "prompt.txt").write_text("é漢\n<", encoding="utf-8")
    assert main(command(trained, f"--prompt_file={tmp_path / 'prompt.txt'}", *rules)) == 0
    assert capsys.readouterr().out == expected
    standard_input = io.TextIOWrapper(io.BytesIO("é漢\n<".encode()))
    monkeypatch.setattr("sys.stdin", standard_input)
    assert main(command(trained, "--prompt_file=-", "--stream", *rules)) == 0
    assert capsys.readouterr().out == expected


def test_a_prompt_file_is_read_as_the_vocabulary_reads_texts(tmp_path: Path) -> None:
    file, raw = tmp_path / "prompt", b"\xef\xbb\xbfa\r\nb\xff"
    file.write_bytes(raw)
    assert read_prompt(str(file), kind="bytes").encode("utf-8", "surrogateescape") == raw
    assert read_prompt(str(file), kind="characters") == "a\nb\udcff"


@pytest.mark.parametrize("flags", [[], ["--stream"], ["--interactive"]])
def test_a_terminal_shows_control_characters_and_files_hold_them(
    trained: Path,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = iter([r"<\n", "/show", "/tree"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/quit"))
    prompt = [] if flags == ["--interactive"] else ["--prompt=<\x1b[31m\n"]
    sample = ["sample", f"--workdir={trained}", "--num_chars=400", "--temperature=0.5"]
    capsys.readouterr()
    assert main([*sample, *flags, *prompt]) == 0
    plain = capsys.readouterr().out
    assert "\x1b[31m" in plain
    assert "\0" in plain
    typed = iter([r"<\n", "/show", "/tree"])
    code, shown = on_terminal([*sample, *flags, *prompt])
    assert code == 0
    expected = plain.replace("\x1b", r"\x1b").replace("\0", r"\x00")
    assert expected.strip() in shown
    assert not {"\x1b", "\0"} & set(shown)


HOSTILE = "\a\x1b[31m\r\x7f\x9b\u200f\u202e\u2066\u061c"  # short, since errors shorten long names


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", f"--workdir={HOSTILE}"],
        ["sample", "--workdir=RUN", f"--prompt_file={HOSTILE}"],
        [SMOKE, f"--config.data.path={HOSTILE}"],
        [f"--config={HOSTILE}"],
        [HOSTILE],
    ],
)
def test_an_error_shows_control_characters_of_a_name(trained: Path, arguments: list[str]) -> None:
    arguments = [argument.replace("RUN", str(trained)) for argument in arguments]
    code, shown = on_terminal(arguments)
    assert code == 2
    assert "charrnn: error: " in shown
    assert not set(HOSTILE) - set("[31m") & set(shown)
    assert r"\x1b" in shown
    assert r"\u202e" in shown


def test_training_shows_control_characters_of_its_text_and_its_bar(tmp_path: Path) -> None:
    text = tmp_path / "\x1b[2J.txt"
    text.write_bytes(("\a\x1b[31m\u202etext\r\n" * 500).encode())
    own = [f"--config.data.path={text}", "--config.sample.prompt=t", "--config.train.num_steps=9"]
    code, shown = on_terminal([SMOKE, f"--workdir={tmp_path / 'run'}", *own])
    assert code == 0
    assert f"Corpus: {tmp_path}/\\x1b[2J.txt" in shown
    assert r"\x07\x1b[31m\u202etext" in shown
    assert not {"\a", "\x1b", "\u202e"} & set(shown)
    assert re.search("\repoch .* 9/9 ", shown)  # the bar moves


def test_best_of_shows_the_likeliest(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def losses(*flags: str) -> list[float]:
        capsys.readouterr()
        assert main(command(trained, "--json", "--prompt=<", *flags)) == 0
        return [json.loads(line)["nats_per_char"] for line in capsys.readouterr().out.splitlines()]

    assert losses("--best_of=3") == [min(losses("--num_samples=3"))]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_p=2"], "top_p is 2.0; it must be from 1e-6 to 1"),
        (["--pattern=("], "the pattern '(' cannot be used"),
        (["--stop="], "a stop string is empty"),
        (["--stop=Z"], "a stop string has characters not in the vocabulary: 'Z' at position 0"),
        (["--allow=Z", "--unk=skip"], "allow has characters not in the vocabulary: 'Z'"),
        (["--stream", "--num_samples=2"], "--stream shows one text"),
        (["--stream", "--json"], "not allowed with argument"),
        (["--interactive", "--best_of=2"], "--interactive shows one text"),
        (["--interactive", "--prompt_file=-"], "--interactive needs standard input for itself"),
        (["--prompt=a", "--prompt_file=b"], "give only one of them"),
        (
            ["--prompt_file=/absent"],
            "cannot read the prompt in /absent (No such file",
        ),
        (["--no_repeat=-1"], "'-1' is not a whole number of at least 0"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    trained: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(command(trained, *flags)) == 2
    assert message in last_line_of_error(capsys)


def test_a_registered_rule_of_the_command_is_used(
    trained: Path, capsys: pytest.CaptureFixture[str], own_registries: None
) -> None:
    register_rule("likeliest", lambda vocabulary: TopK(1))
    texts = []
    for flag in ("--rule=likeliest", "--temperature=0", "--seed=3"):
        assert main(command(trained, "--num_chars=30", flag)) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_an_interactive_session_goes_on_goes_back_and_branches(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved, written = tmp_path / "text.npz", tmp_path / "text.txt"
    lines = ["<", "/set temperature 0.5", "", "/again", "/tree", "/back", "/back", "é\\n", "Z"]
    lines += [
        "/set stop Z",
        "/set top_p 7",
        "/set num_chars 0",
        "/set speed 1",
        "/set own nothing",
        "/set",
        "/what",
        "/back 9",
    ]
    lines += [
        f"/save --state {saved}",
        f"/save {written}",
        f"/save  {written}",
        "/show",
        f"/open {saved}",
        "/open /absent",
        "/new 漢",
        "/help",
        "/back 3",
        "/back 1",
    ]
    typed = iter(lines)

    def answer(prompt: str) -> str:
        print(prompt, end="")
        try:
            line = next(typed)
        except StopIteration:
            raise EOFError from None
        print(line)
        return line

    monkeypatch.setattr("builtins.input", answer)
    assert main(command(trained, "--interactive")) == 0
    out = capsys.readouterr().out
    after = {}
    for line, shown in re.findall(r"\[\d+\] > (.*)\n((?:(?!\[\d+\] > )[\s\S])*)", out):
        after.setdefault(line, shown)
    assert len(after["<"]) == 41
    tree = after["/tree"].splitlines()
    assert tree[0].startswith("   1 '<' + '")
    assert [line[:8] for line in tree[1:]] == ["   2   '", "*  3   '"]  # nothing was typed
    assert after["/back"].startswith("...<")
    assert "! there is no text before it" in out
    assert "! not in the vocabulary: 'Z' at position 0" in after["Z"]
    assert "a stop string has characters not" in after["/set stop Z"]
    assert "top_p is 7.0" in after["/set top_p 7"]
    assert "'0' is not a whole number of at least 1" in after["/set num_chars 0"]
    assert "no setting 'speed'" in after["/set speed 1"]
    assert "'nothing'" in after["/set own nothing"]
    assert "temperature 0.5" in after["/set"]
    assert "there is no /what" in after["/what"]
    assert "no text 9" in after["/back 9"]
    assert after["/back 1"].startswith("...<")
    assert len(after["/back 1"]) < len(after["/back 3"])
    assert after[f"/save --state {saved}"] == f"Saved to {saved}\n"
    assert after[f"/save {written}"] == f"Saved to {written}\n"
    assert written.read_text(encoding="utf-8") + "\n" == after["/show"]
    assert f"{written} exists: give another name" in after[f"/save  {written}"]
    assert after["/show"] == after[f"/open {saved}"]
    assert after["/show"].startswith("<")
    assert "é\n" in after["/show"]
    assert "cannot read a saved text" in after["/open /absent"]
    assert "/again" in after["/help"]


def test_no_file_ends_a_session(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "other.npz", identity=np.arange(3), tokens="text")
    with zipfile.ZipFile(tmp_path / "method.npz", "w") as archive:
        archive.writestr("identity.npy", b"\x93NUMPY")
    content = (tmp_path / "method.npz").read_bytes()
    (tmp_path / "method.npz").write_bytes(content.replace(b"\0\0\0\0", b"\0\0\x63\0", 2))
    with zipfile.ZipFile(tmp_path / "locked.npz", "w") as archive:
        archive.writestr("identity.npy", b"text")
    content = bytearray((tmp_path / "locked.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # encrypted
    (tmp_path / "locked.npz").write_bytes(content)
    huge = np.lib.format.header_data_from_array_1_0(np.zeros(1)) | {"shape": (10**15,)}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, huge)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("identity.npy", header.getvalue())
    names = [file.name for file in sorted(tmp_path.iterdir())]
    files = [
        *(str(tmp_path / name) for name in names),
        str(trained),
        str(tmp_path),
        "a\0b",
        "~no-/x",
    ]
    lines = ["<", *(f"/open {file}" for file in files)]
    lines += [f"/save {file}" for file in (tmp_path / "loop" / "x", tmp_path, "a\0b", "~no-/x")]
    typed = iter([*lines, "/show"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/quit"))
    assert main(command(trained, "--interactive")) == 0
    out = capsys.readouterr().out
    assert out.count("\n! ") == len(lines) - 1
    assert len(names) == 6


@pytest.mark.parametrize("flag", ["--interactive", "--prompt_file=-"])
def test_closed_standard_input_is_one_line(
    trained: Path, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    capsys.readouterr()
    assert main(command(trained, flag)) == 2
    assert "standard input, which is closed" in last_line_of_error(capsys)


def test_an_empty_line_goes_on_behind_the_stop_string(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["<", "", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/quit"))
    assert main(command(trained, "--interactive", "--stop=p", "--temperature=0")) == 0
    assert capsys.readouterr().out.count("scri\nt>") == 2


def test_ctrl_c_ends_a_text_and_not_the_session(trained: Path) -> None:
    """In a real terminal."""
    ours, theirs = pty.openpty()
    flags = command(trained, "--interactive", "--prompt=<", "--num_chars=2000000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "charrnn_jax.main", *flags],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""

    def wait_for(mark: bytes) -> None:
        nonlocal shown
        while mark not in shown:
            assert select.select([ours], [], [], 120)[0], shown[-500:]
            shown += os.read(ours, 65536)

    try:
        wait_for(b"script")  # it is writing
        process.send_signal(signal.SIGINT)
        wait_for(b"[1] > ")
        os.write(ours, b"/set\n")
        wait_for(b"temperature 1.0")
        os.write(ours, b"/set num_chars 3\n/new <s\n")
        wait_for(b"[2] > ")
        os.write(ours, b"\x1b[200~c\nr\x1b[201~\r")  # two lines that are pasted
        wait_for(b"[3] > ")
        os.write(ours, b"/tree\n")
        wait_for(b"'c\\nr' + ")
        os.write(ours, b"/quit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)


def test_the_baseline_writes_from_counts_of_the_text(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text repeats one line: after any of its characters, counts know the next one."""
    capsys.readouterr()
    line = "</script>\"'\\ <!-- 🙂 é漢\x00\u2028\x1b[31m\n"
    flags = ["--baseline", "--prompt=</script>", "--num_samples=2", "--temperature=0"]
    assert main(command(trained, *flags)) == 0
    expected = (line * 3)[: len("</script>") + 40]
    assert capsys.readouterr().out == f"{expected}\n{'_' * 80}\n{expected}\n"
    assert main(command(trained, "--baseline", "--order=0", "--json", "--seed=3")) == 0
    (sample,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert sample["num_chars"] == len(sample["text"]) == 40
    assert set(sample["text"]) <= set(line)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--baseline", "--top_k=3"], "--top_k is not for --baseline"),
        (["--baseline", "--stop=x"], "--stop is not for --baseline"),
        (["--baseline", "--best_of=2"], "--best_of is not for --baseline"),
        (["--order=3"], "--order is for --baseline only"),
        (["--path=text.txt"], "--path is for --adapt, --baseline"),
        (["--baseline", "--order=33"], "the order of an n-gram model is 33"),
        (["--baseline", "--prompt=Q"], "not in the vocabulary: 'Q' at position 0"),
    ],
)
def test_flags_that_do_not_suit_the_baseline_are_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert main(command(trained, *flags)) == 2
    assert says in last_line_of_error(capsys)
