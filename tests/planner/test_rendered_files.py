"""Rendered files before the tools that will read them: yes to ours, no to broken ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bul.cli.main import main
from bul.config import load_settings
from bul.errors import ConfigError
from bul.planner.alerts import render_alerts
from bul.planner.phases import PHASES, SCENARIOS
from bul.planner.plan import Plan, Question, make_plan
from bul.planner.predict import Prediction, Workload
from bul.planner.render import Secrets, render_files
from bul.simulator.replica import PROFILES, ReplicaProfile

pytestmark = pytest.mark.steady

ROOT = Path(__file__).parents[2]
SERVERS = ROOT / ".venv" / "opt" / "bin"
SECRETS = Secrets(
    hashes={"operator": "0" * 64, "client": "1" * 64},
    cache_secret="secret-of-a-test",
    valkey_password="word-of-a-test",
    operator_key="key-of-a-test",
)


def formula(workload: Workload, profile: ReplicaProfile, replicas: int, cache: bool) -> Prediction:
    del cache, profile
    p95_ms = 100.0 if replicas >= workload.requests_per_second / 50 else 1000.0
    return Prediction(replicas=replicas, ttft_p50_ms=50.0, ttft_p95_ms=p95_ms, busy=0.5)


def plan_for(phase: int, scenario: str) -> Plan:
    rates = (20.0, 200.0, 800.0, 3000.0)
    return make_plan(
        Question(
            workload=Workload(
                requests_per_second=rates[phase - 1], prompt_tokens=800, output_tokens=8
            ),
            slo_p95_ms=500.0,
            phase=PHASES[phase - 1],
            scenario=SCENARIOS[scenario],
            profile=PROFILES["8b"],
        ),
        formula,
    )


def write(folder: Path, phase: int, scenario: str, autoscaler: str = "") -> Path:
    files = render_files(plan_for(phase, scenario), SECRETS, autoscaler=autoscaler)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "prometheus" / "operator.key").write_text("key\n", encoding="utf-8")
    return folder


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def compose(folder: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("docker-compose")
    assert found, "docker-compose is missing: make servers"
    return run(found, "config", folder=folder)


def kubernetes(folder: Path) -> subprocess.CompletedProcess[str]:
    manifests = sorted((folder / "kubernetes").glob("*.yaml"))
    tool = Path(sys.executable).with_name("kubernetes-validate")
    return run(tool, "--strict", *manifests, folder=folder)


def nginx(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(SERVERS / "nginx", "-t", "-c", folder / "nginx.conf", folder=folder)


def prometheus_config(folder: Path) -> subprocess.CompletedProcess[str]:
    """`check config` would look for the key where the container mounts it: syntax only."""
    return run(
        SERVERS / "promtool",
        "check",
        "config",
        "--syntax-only",
        "prometheus/prometheus.yml",
        folder=folder,
    )


def rules(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(SERVERS / "promtool", "check", "rules", "prometheus/alerts.yml", folder=folder)


VALIDATORS = {
    "docker-compose.yml": compose,
    "kubernetes/bul.yaml": kubernetes,
    "nginx.conf": nginx,
    "prometheus/prometheus.yml": prometheus_config,
    "prometheus/alerts.yml": rules,
}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", list(SCENARIOS))
@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_every_phase_and_scenario_passes_every_tool(
    phase: int, scenario: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, phase, scenario)
    for name, validate in VALIDATORS.items():
        outcome = validate(folder)
        assert outcome.returncode == 0, (name, outcome.stdout, outcome.stderr)
    settings = load_settings(folder / "bul.toml", environ={})
    assert set(settings.keys) == {"operator", "client"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VALIDATORS))
def test_each_tool_refuses_a_broken_file(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, 3, "variable")
    path = folder / name
    wrong = path.read_text(encoding="utf-8")
    for good, bad in (
        ("deploy:", "deplooy:"),
        ("containers:", "contaners:"),
        ("proxy_pass http://bul;", "proxy_pas http://bul;"),
        ("scrape_configs:", "scrape_confgs:"),
        ("expr:", "exprr:"),
    ):
        wrong = wrong.replace(good, bad)
    path.write_text(wrong, encoding="utf-8")
    assert VALIDATORS[name](folder).returncode != 0


def test_another_autoscaler_is_rendered_only_when_it_is_asked_for() -> None:
    plan = plan_for(3, "variable")
    assert "kubernetes/autoscaler.yaml" not in render_files(plan, SECRETS)
    hpa = render_files(plan, SECRETS, autoscaler="hpa")["kubernetes/autoscaler.yaml"]
    assert "HorizontalPodAutoscaler" in hpa
    keda = render_files(plan, SECRETS, autoscaler="keda")["kubernetes/autoscaler.yaml"]
    assert "ScaledObject" in keda
    with pytest.raises(ConfigError, match="hpa or keda"):
        render_files(plan, SECRETS, autoscaler="vpa")


@pytest.mark.slow
def test_a_horizontal_pod_autoscaler_is_valid(tmp_path: Path) -> None:
    outcome = kubernetes(write(tmp_path, 3, "variable", autoscaler="hpa"))
    assert outcome.returncode == 0, outcome.stderr


def test_no_file_but_the_settings_holds_a_secret() -> None:
    files = render_files(plan_for(3, "variable"), SECRETS)
    holders = {name for name, text in files.items() if "of-a-test" in text}
    assert holders == {"bul.toml", "valkey.conf"}


def test_the_alerts_of_the_repository_are_the_rendered_ones() -> None:
    path = ROOT / "deploy" / "prometheus" / "alerts.yml"
    assert path.read_text(encoding="utf-8") == render_alerts()


@pytest.mark.slow
def test_the_command_writes_a_private_folder_and_never_over_another(tmp_path: Path) -> None:
    out = tmp_path / "deploy"
    asked = ["plan", "--rps", "3", "--phase", "3", "--scenario", "traffic-spikes"]
    assert main([*asked, "--out", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o700
    assert (out / "plan.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    for name, validate in VALIDATORS.items():
        outcome = validate(out)
        assert outcome.returncode == 0, (name, outcome.stdout, outcome.stderr)
    assert main([*asked, "--out", str(out)]) == 2


@pytest.mark.slow
def test_a_target_that_nothing_holds_ends_with_1_and_is_not_rendered(tmp_path: Path) -> None:
    asked = ["plan", "--rps", "3", "--slo-p95-ms", "20", "--json"]
    assert main(asked) == 1
    assert main([*asked, "--out", str(tmp_path / "deploy")]) == 2
    assert not (tmp_path / "deploy").exists()
