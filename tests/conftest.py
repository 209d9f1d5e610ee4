"""Strict set-up: two CPU devices, rank promotion raises, warnings are errors (pyproject.toml)."""

import os
import shutil
import signal
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling: the processes of one session share what they compiled.
if _is_first_process := "CHARRNN_TESTS" not in os.environ:
    os.environ["CHARRNN_TESTS"] = tempfile.mkdtemp(prefix="charrnn-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["CHARRNN_TESTS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
# LLVM's optimizations would double that time. XLA's own are made, and flags that are set come last
# and win: `.ci/run` also runs tests with programs that are optimized as those of users.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2 "
    + os.environ.get("XLA_FLAGS", "")
)

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import jax
import pytest
from ml_collections import ConfigDict

from charrnn_jax.config import default_config
from charrnn_jax.registry import ALL

if TYPE_CHECKING:
    from selenium import webdriver

pytest.register_assert_rewrite("helpers")
jax.config.update("jax_numpy_rank_promotion", "raise")
# An example may be the first of its shape and compile, on a machine that is busy.
hypothesis.settings.register_profile(
    "compiling", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("compiling")

ROOT = Path(__file__).parent.parent
SENTENCE = "The quick brown fox jumps over the lazy dog; 'twas brillig, and the slithy toves.\n"


def pytest_unconfigure() -> None:
    if _is_first_process:
        shutil.rmtree(os.environ["CHARRNN_TESTS"], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or fills the user's caches; the data folder stays if the caller names one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Signals act as usual, here and in children, even where `nohup` or a shell ignores them."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in ALL:
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
        monkeypatch.setattr(registry, "sources", dict(registry.sources))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,100 characters."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(SENTENCE * 50, encoding="utf-8")
    return file


@pytest.fixture
def tiny_config(text_file: Path) -> ConfigDict:
    """A run of 2 epochs of a few steps each, in about two seconds."""
    config = default_config()
    config.data.path = str(text_file)
    config.data.batch_size = 8
    config.data.sequence_length = 20
    config.model.embedding_size = 8
    config.model.hidden_size = 16
    config.optimizer.learning_rate = 1e-2
    config.train.num_epochs = 2
    config.train.log_every_steps = 7
    config.evaluation.window = 32
    config.sample.prompt = "The "
    config.sample.num_chars = 20
    return config


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator["webdriver.Chrome"]:
    """Headless Chromium; skips where there is none."""
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    chromedriver = shutil.which("chromedriver")
    if not binary or not chromedriver:
        pytest.skip("the page is tested in Chromium: install chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "window-size=1280,800"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver
