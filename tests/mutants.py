"""Measures whether the tests notice one-line mistakes: `python -m tests.mutants`.

`mutants.txt` lists mistakes of the kind that happen when code is moved or rewritten. Each is made
in a copy of the tracked files, and the tests that ought to fail are run there. One paragraph a
mutant:

    # what is wrong
    file: where
    old:
    |the text as it is, which occurs once; lines begin after the bar
    new:
    |the text with the mistake
    tests: arguments of pytest
    explained: why no test needs to notice it (optional; such mutants are counted apart)

Run it from the root of the repository.
"""

import argparse
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("mutants.txt")
TIMEOUT_SECONDS = 180  # a mutant whose tests take longer is noticed
ENOUGH = 0.95  # of the mutants are to be noticed
# Exit codes of pytest: tests failed, or a module could not be imported.
_NOTICED, _NONE_RAN = (1, 2), 5


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
      claim: what is wrong.
      file: path from the root of the repository.
      old: text that occurs once in the file.
      new: text that takes its place.
      tests: arguments of pytest, such as ("tests/test_fused.py", "-k", "equals_scan").
      explained: why no test needs to notice it; "": one should.
    """

    claim: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    explained: str = ""

    @property
    def test_files(self) -> tuple[str, ...]:
        return tuple(argument for argument in self.tests if argument.startswith("tests/"))

    @property
    def expression(self) -> str:
        """Which tests of the files; "": all."""
        return self.tests[self.tests.index("-k") + 1] if "-k" in self.tests else ""


def read_mutants(file: Path = LIST) -> list[Mutant]:
    """Returns the mutants of a list, in its order."""
    paragraphs = re.split(r"\n(?=# )", file.read_text(encoding="utf-8").strip())
    return [_parse(paragraph) for paragraph in paragraphs if paragraph.startswith("# ")]


def _parse(paragraph: str) -> Mutant:
    claim, *lines = paragraph.splitlines()
    fields: dict[str, list[str]] = {}
    name = ""
    for line in filter(None, lines):
        if line.startswith("|"):
            fields[name].append(line[1:])
        else:
            name, _, value = line.partition(":")
            fields[name] = [value.strip()] if value.strip() else []
    old, new = ("\n".join(fields[side]) for side in ("old", "new"))
    return Mutant(
        claim=claim.removeprefix("# "),
        file=fields["file"][0],
        old=old,
        new=new,
        tests=tuple(shlex.split(fields["tests"][0])),
        explained=" ".join(fields.get("explained", [])),
    )


def check(mutants: Iterable[Mutant], root: Path = ROOT) -> list[str]:
    """Returns what is wrong with a list: texts that are not there once, tests that are missing."""
    problems = []
    for mutant in mutants:
        file = root / mutant.file
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if (count := text.count(mutant.old)) != 1 or not mutant.old:
            problems.append(f"{mutant.claim}: the old text is {count} times in {mutant.file}")
        if mutant.old == mutant.new:
            problems.append(f"{mutant.claim}: nothing changes")
        names = ""
        for test_file in mutant.test_files:
            if (root / test_file).is_file():
                tests = (root / test_file).read_text(encoding="utf-8")
                names += " ".join(re.findall(r"def (test_\w+)", tests)) + " "
            else:
                problems.append(f"{mutant.claim}: there is no {test_file}")
        words = set(re.findall(r"\w+", mutant.expression)) - {"and", "or", "not"}
        missing = sorted(word for word in words if word not in names)
        if missing or not mutant.test_files:
            problems.append(f"{mutant.claim}: no test is called {', '.join(missing) or 'anything'}")
    claims = [mutant.claim for mutant in mutants]
    problems += [f"{claim}: listed twice" for claim in set(claims) if claims.count(claim) > 1]
    return problems


class Copy:
    """A copy of the tracked files, with a cache of compiled programs of its own.

    A mutated program is another program to the cache, so that what is kept is never wrong.
    """

    def __init__(self, folder: Path):
        self.root, self._folder = folder / "repository", folder
        tracked = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        for name in filter(None, tracked.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)
        (folder / "programs").mkdir()

    def run(self, arguments: Sequence[str], *, timeout: float | None = None) -> int | None:
        """Runs pytest in the copy; returns its exit code, or None if it took too long."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "CHARRNN_TESTS": str(self._folder / "programs"),  # see conftest.py
        }
        options = ["-n", "0", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
        options.append(f"--basetemp={self._folder / 'tmp'}")
        with open(self._folder / "output.txt", "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *arguments],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def failed(self) -> list[str]:
        """Returns the tests that failed in the last run, and files that could not be imported."""
        output = (self._folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        return re.findall(r"^(?:FAILED|ERROR) (\S+?(?:\[.*\])?)(?: - .*)?$", output, re.MULTILINE)

    def try_mutant(self, mutant: Mutant, options: Sequence[str] = ()) -> int | None:
        """Returns the exit code of the mutant's tests, see `run`; options: more of pytest's."""
        file = self.root / mutant.file
        text = file.read_text(encoding="utf-8")
        try:
            _write(file, text.replace(mutant.old, mutant.new))
            return self.run(["-x", *mutant.tests, *options], timeout=TIMEOUT_SECONDS)
        finally:
            _write(file, text)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    # Python takes a file of the same size and second for the one that it compiled.
    Path(cache_from_source(str(file))).unlink(missing_ok=True)


def find_failing(mutants: Sequence[Mutant], copy: Copy) -> list[str]:
    """Runs the tests of the mutants as the code is; returns those that fail."""
    expressions: defaultdict[str, set[str]] = defaultdict(set)
    for mutant in mutants:
        for file in mutant.test_files:
            expressions[file].add(mutant.expression)
    failing = []
    for file, selected in sorted(expressions.items()):
        start = time.monotonic()
        any_of = " or ".join(f"({words})" for words in sorted(selected))
        code = copy.run([file] if "" in selected else [file, "-k", any_of])
        failed = copy.failed() or ([file] if code not in (0, _NONE_RAN) else [])
        failing += failed
        verdict, seconds = "FAIL" if failed else "pass", time.monotonic() - start
        print(f"{verdict}  {seconds:5.0f} s  {file}", *failed, flush=True)
    return failing


def measure(mutants: Sequence[Mutant], *, jobs: int, despite_failures: bool = False) -> int:
    """Tries the mutants, prints a line for each and the sum; returns the exit code.

    Args:
      mutants: at least one.
      jobs: how many are tried at once.
      despite_failures: go on, without the tests that fail as the code is.
    """
    with tempfile.TemporaryDirectory(prefix="charrnn-mutants-") as folder:
        copies: queue.Queue[Copy] = queue.Queue()
        for job in range(min(jobs, len(mutants))):
            copies.put(Copy(Path(folder) / str(job)))
        copy = copies.get()
        failing = find_failing(mutants, copy)
        copies.put(copy)
        if failing and not despite_failures:
            print("These tests fail as the code is: mend them first, or give --despite_failures")
            return 1
        options = [f"--deselect={test}" for test in failing]

        def notices(mutant: Mutant) -> bool:
            start, copy = time.monotonic(), copies.get()
            try:
                code = copy.try_mutant(mutant, options)
                by = copy.failed()[:1] if code else []
            finally:
                copies.put(copy)
            noticed = code is None or code < 0 or code in _NOTICED
            verdict = "noticed    " if noticed else "NOT NOTICED"
            seconds = f"{time.monotonic() - start:4.0f} s"
            print(verdict, seconds, f"{mutant.file}: {mutant.claim}", *by, sep="  ", flush=True)
            return noticed

        with ThreadPoolExecutor(jobs) as pool:
            results = list(zip(mutants, pool.map(notices, mutants), strict=True))
    expected = [(mutant, noticed) for mutant, noticed in results if not mutant.explained]
    num_noticed = sum(noticed for _, noticed in expected)
    share = num_noticed / max(len(expected), 1)
    print(f"\n{num_noticed} of {len(expected)} noticed ({share:.1%})")
    for mutant, noticed in results:
        if not noticed:
            verdict = "explained    " if mutant.explained else "NOT NOTICED  "
            print(f"  {verdict}{mutant.file}: {mutant.claim}", mutant.explained, sep="  ")
    return 0 if share >= ENOUGH or not expected else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Do the tests notice one-line mistakes?")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at once")
    parser.add_argument("--only", metavar="TEXT", help="mutants with this in the claim or file")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="only every Nth mutant: a quick estimate"
    )
    parser.add_argument("--list", action="store_true", help="print the mutants")
    parser.add_argument("--check", action="store_true", help="only check the list")
    parser.add_argument(
        "--despite_failures", action="store_true", help="leave out tests that fail as the code is"
    )
    args = parser.parse_args()
    mutants = read_mutants()
    if args.only:
        mutants = [each for each in mutants if args.only in each.claim or args.only in each.file]
    mutants = mutants[:: max(args.every, 1)]
    if args.list:
        for mutant in mutants:
            print(f"{mutant.file}: {mutant.claim}  [{shlex.join(mutant.tests)}]")
        return 0
    if problems := check(mutants):
        print("\n".join(problems))
        return 1
    print(f"{len(mutants)} mutants", flush=True)
    if args.check:
        return 0
    return measure(mutants, jobs=max(args.jobs, 1), despite_failures=args.despite_failures)


if __name__ == "__main__":
    sys.exit(main())
