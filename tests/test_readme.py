"""Every command and every example of the README runs, and its figures are those of the demo."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vae_anomaly import VAEDetector, scores
from vae_anomaly.cli import VERBS, cli
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.priors import PRIORS
from vae_anomaly.scores import SCORES, Score
from vae_anomaly.thresholds import THRESHOLDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "datasets").symlink_to(ROOT / "datasets", target_is_directory=True)
    return folder


def test_shell_commands_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 6
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "vae-anomaly"
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert (folder / "benign-report" / "report.html").stat().st_size < 2_000_000


def test_python_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    example = "\n".join(blocks("python"))
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "names",
    [VERBS, SCORES, LIKELIHOODS, PRIORS, THRESHOLDS, LABEL_THRESHOLDS],
    ids=lambda names: next(iter(names)),
)
def test_tables_name_every_entry(names: dict[str, object]) -> None:
    for name in names:
        assert f"`{name}`" in README


def test_the_guide_to_a_new_score_works(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    names = dict(vars(scores))
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    assert '`"latent_norm": Score(latent_norm)`' in text
    monkeypatch.setitem(SCORES, "latent_norm", Score(names["latent_norm"]))
    X = np.random.default_rng(0).normal(size=(60, 3))
    detector = VAEDetector(score_name="latent_norm", max_steps=20, n_estimators=2, hidden=(8,)).fit(X)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), detector.anomaly_score(X), rtol=1e-4)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    result = CliRunner().invoke(cli, ["demo", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert "ROC-AUC" in result.output
    assert "False alarms" in result.output
    assert "report.html" in result.output
    return folder


@pytest.mark.parametrize("sample", ["breast-cancer", "digits"])
def test_figures_are_those_of_the_demo(demo: Path, sample: str) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith(f"| {sample.replace('-', ' ')}"))
    written = [float(number) for number in re.findall(r"\d+\.\d+", row)]
    metrics = json.loads((demo / sample / "metrics.json").read_text())
    auroc = metrics["roc_auc"]
    # Other processors round differently, and training amplifies it.
    assert written[:3] == pytest.approx([auroc["value"], auroc["low"], auroc["high"]], abs=0.03)
    assert written[3] == pytest.approx(100 * metrics["recall"]["value"], abs=10)
    assert written[4] == pytest.approx(100 * metrics["false_alarm_rate"]["value"], abs=5)
