"""`tspace doctor`: what it reads of SLURM (texts recorded from a real one), and its judgements."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from stages.tools import doctor, finding, site
from stages.workspace import Workspace

ROOT = Path(__file__).parent.parent

# SLURM 22.05.8 without accounting, shortened.
CONFIG = """\
Configuration data as of 2026-11-22T06:13:41
AccountingStorageTRES   = cpu,mem,energy,node,billing,fs/disk,vmem,pages
AccountingStorageType   = accounting_storage/none
AuthInfo                = socket=/run/munge.socket,cred_expire=5
JobRequeue              = 1
MinJobAge               = 300 sec
PreemptMode             = OFF
PreemptType             = preempt/none
PreemptExemptTime       = 00:00:00
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""
PARTITIONS = (
    "PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES "
    "QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO "
    "MaxNodes=UNLIMITED MaxTime=01:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n[1-2] "
    "PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE "
    "PreemptMode=OFF State=UP TotalCPUs=6 TotalNodes=2 SelectTypeParameters=NONE "
    "JobDefaults=(null) DefMemPerCPU=100 MaxMemPerNode=UNLIMITED "
    "TRES=cpu=6,mem=32000M,node=2,billing=6\n"
)
GRES = "main (null)\n"
SACCT_OFF = (False, "Slurm accounting storage is disabled")


def test_configuration_is_read():
    found = site.parse_config(CONFIG)
    assert found["MinJobAge"] == "300 sec"
    assert found["AuthInfo"] == "socket=/run/munge.socket,cred_expire=5"
    assert found["SLURM_VERSION"] == "22.05.8"
    assert len(found) == 9


def test_partitions_are_read():
    found = site.parse_partitions(PARTITIONS + PARTITIONS.replace("=main", "=gpu"))
    assert list(found) == ["main", "gpu"]
    assert found["main"]["MaxTime"] == "01:00:00"
    assert found["main"]["TRES"] == "cpu=6,mem=32000M,node=2,billing=6"


def test_generic_resources_are_read():
    assert site.parse_gres(GRES) == {"main": set()}
    text = "gpu gpu:a100:4(S:0-1),nvme:1\ngpu gpu:h100:8(S:0-1)\ncpu (null)\n"
    assert site.parse_gres(text) == {"gpu": {"gpu:a100:4", "nvme:1", "gpu:h100:8"}, "cpu": set()}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300 sec", 300), ("5 min", 300), ("1h", 3600), ("3600", 3600), ("(null)", None), ("", None)],
)
def test_seconds(text, seconds):
    assert site.seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("01:00:00", 60),
        ("1-12:00:00", 36 * 60),
        ("30:00", 30),
        ("00:00:30", 0.5),
        ("UNLIMITED", math.inf),
        ("NONE", None),
    ],
)
def test_minutes(text, minutes):
    assert site.minutes_of(text) == minutes


NO_ACCOUNTING = {"AccountingStorageType": "accounting_storage/none", "MinJobAge": "300 sec"}
ACCOUNTING = NO_ACCOUNTING | {"AccountingStorageType": "accounting_storage/slurmdbd"}


@pytest.mark.parametrize(
    ("command", "first", "config", "sacct", "level", "advice"),
    [
        ("squeue", 20, NO_ACCOUNTING, None, "ok", ""),
        ("squeue", 100, NO_ACCOUNTING, None, "ok", ""),
        ("squeue", 101, NO_ACCOUNTING, None, "fail", "status-checks: 100` or less"),
        ("squeue", 101, ACCOUNTING, (True, ""), "warn", "write `slurm-status-command: sacct`"),
        ("sacct", 20, ACCOUNTING, (True, ""), "ok", ""),
        ("sacct", 20, NO_ACCOUNTING, None, "fail", "write `slurm-status-command: squeue`"),
        (None, 20, NO_ACCOUNTING, None, "fail", "write `slurm-status-command: squeue`"),
        (None, 20, ACCOUNTING, (True, ""), "ok", ""),
        ("sacct", 20, ACCOUNTING, SACCT_OFF, "fail", "write `slurm-status-command: squeue`"),
        ("squeue", 20, {}, None, "fail", "ask the site for a larger MinJobAge"),
        ("squeue", 20, NO_ACCOUNTING | {"MinJobAge": "2 sec"}, None, "fail", "larger MinJobAge"),
        # Newer versions say (null) instead of none.
        ("sacct", 20, NO_ACCOUNTING | {"AccountingStorageType": "(null)"}, None, "fail", "squeue"),
    ],
)
def test_how_finished_jobs_are_noticed(command, first, config, sacct, level, advice):
    settings = {site.INIT_SECONDS: first}
    if command:
        settings[site.STATUS_COMMAND] = command
    # sacct is not asked where accounting is off.
    accounting, status = site.check_status(settings, config, lambda: sacct)
    assert status.level == level, status
    assert advice in status.text
    assert accounting.what == "accounting"


def judged(settings, config=CONFIG, partitions=PARTITIONS, gres=GRES):
    """Findings about partitions, without the ok ones."""
    found = site.check_partitions(
        {"retries": 2, "slurm-requeue": True} | settings,
        site.parse_config(config),
        site.parse_partitions(partitions),
        site.parse_gres(gres),
    )
    return [str(finding) for finding in found if finding.level != "ok"]


def test_partition_and_time_limit():
    assert judged({"default-resources": {"runtime": 60}}) == []
    assert judged({"default-resources": ["slurm_partition=main", "runtime=20 * attempt"]}) == []
    [line] = judged({"default-resources": {"runtime": "30 * attempt"}})
    assert line.startswith("warn  runtime (all jobs): 90 min at the last attempt, main allows 60")
    [line] = judged({"default-resources": {"runtime": 61}})
    assert line.startswith("fail  runtime")
    [line] = judged({"default-resources": {"slurm_partition": "gpu"}})
    assert line.startswith("fail  partition gpu: no such partition") and "one of: main" in line
    [line] = judged({}, partitions=PARTITIONS.replace("Default=YES", "Default=NO"))
    assert line.startswith("fail  partition: the cluster has no default one")
    [line] = judged({}, partitions=PARTITIONS.replace("DefaultTime=NONE", "DefaultTime=00:10:00"))
    assert "jobs are cut off after 00:10:00; write `runtime: 60 * attempt`" in line
    [line] = judged({}, partitions=PARTITIONS.replace("State=UP", "State=DRAIN"))
    assert line.startswith("warn  partition main: is DRAIN")
    assert judged({}, partitions="") == ["fail  partitions: none that you may see; ask the site"]


def test_what_differs_by_recipe_is_not_judged():
    by_recipe = "'other' if wildcards.recipe == 'big' else 'main'"
    assert judged({"set-resources": {"expert": {"slurm_partition": by_recipe}}}) == []
    assert judged({"default-resources": [f"slurm_partition={by_recipe}"]}) == []


def test_gpus_asked_for_and_there():
    gpus = "main gpu:a100:4(S:0)\n"
    ask = {"set-resources": {"expert": {"gres": "gpu:1"}}}
    assert judged(ask)[0].startswith("fail  gpu (expert): asked for (gpu:1), but main has none")
    [line] = judged({}, gres=gpus)
    assert line.startswith("warn  gpu (all jobs): main has gpu:a100:4, the profile asks for none")
    assert judged({"default-resources": {"gres": "gpu:1"}}, gres=gpus) == []
    assert judged({"default-resources": {"gres": "gpu:a100:1"}}, gres=gpus) == []
    [line] = judged({"default-resources": {"gres": "gpu:h100:1"}}, gres=gpus)
    assert line.startswith("fail  gpu (all jobs): gpu:h100:1 asked for, main has gpu:a100:4")
    # The experts' own setting is what counts, whatever the other jobs ask for.
    assert judged(ask, gres=gpus) == []


def test_preemption():
    config = CONFIG.replace("preempt/none", "preempt/partition_prio")
    requeue = PARTITIONS.replace("PreemptMode=OFF", "PreemptMode=REQUEUE")
    assert judged({}, config, requeue) == []
    [line] = judged({"slurm-requeue": False}, config, requeue)
    assert "`slurm-requeue: true`" in line
    cancel = PARTITIONS.replace("PreemptMode=OFF", "PreemptMode=CANCEL")
    [line] = judged({"retries": 0}, config, cancel)
    assert "preempted jobs are cancelled" in line
    assert judged({"retries": 0}, CONFIG, cancel) == []  # the cluster does not preempt


def test_settings_that_do_not_work():
    good = {"retries": 2, "keep-going": True}
    assert list(site.check_options(good)) == []
    for bad, level in (
        ({"slurm-array-jobs": "all"}, "fail"),
        ({"group-components": ["a=5"]}, "warn"),
        ({"default-resources": {"slurm_extra": "'--signal=USR1@60'"}}, "fail"),
        ({"retries": 0}, "warn"),
        ({"keep-going": False}, "warn"),
    ):
        [finding] = site.check_options(good | bad)
        assert finding.level == level


@pytest.mark.parametrize("name", ["default", "slurm", "slurm-apptainer", "slurm-node"])
def test_our_own_profiles_are_read_and_sound(name):
    settings = doctor.read_profile(ROOT / "profiles" / name)
    if settings.get("executor") == "slurm":
        assert list(site.check_options(settings)) == []
        found = list(site.check_status(settings, NO_ACCOUNTING, lambda: SACCT_OFF))
        assert [f.level for f in found] == ["ok", "ok"]


def test_a_profile_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        doctor.read_profile(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: is not YAML"):
        doctor.read_profile(tmp_path)


def test_the_store_is_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("TSPACE_STORE", str(tmp_path / "store"))
    for answer, level in (("hardlink,copy", "ok"), ("reflink,copy", "warn"), ("", "warn")):
        monkeypatch.setattr(doctor, "run", lambda *_, cwd, answer=answer: (True, answer))
        found = list(doctor.check_store(Workspace(tmp_path)))
        levels = {"store": "ok", "clock": "ok", "links": level, "disk": "ok"}
        assert {f.what: f.level for f in found} == levels
    assert list(tmp_path.rglob("*")) == [tmp_path / "store"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("TSPACE_STORE", str(tmp_path / "file" / "store"))
    [finding] = doctor.check_store(Workspace(tmp_path))
    assert finding.level == "fail" and "TSPACE_STORE" in finding.text


def test_versions_against_the_ranges(tmp_path):
    project = '[project]\nrequires-python = "{}"\ndependencies = [{}]\n'

    def levels(python, packages):
        (tmp_path / "pyproject.toml").write_text(project.format(python, packages))
        return [f.level for f in doctor.check_versions(Workspace(tmp_path))]

    assert levels(">=3.11", '"numpy>=1"') == ["ok", "ok"]
    assert levels(">=99", '"numpy>=1"') == ["fail", "ok"]
    assert levels(">=3.11", '"numpy>=99", "no-such-package-at-all"') == ["ok", "fail", "fail"]


def test_the_command_runs_and_its_status_tells(capsys):
    failed = finding.Finding("fail", "a", "b; c")
    assert str(failed) == "fail  a: b; c"
    assert doctor.examine(Workspace(ROOT), ROOT / "profiles" / "default", False) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}
    assert any(line.startswith("ok    python: ") for line in lines)
    with pytest.raises(UserError, match="--node"):
        list(doctor.findings(Workspace(ROOT), ROOT / "profiles" / "default", True))


def test_commands_that_fail_or_hang():
    assert finding.run("no-such-command-at-all")[0] is False
    assert finding.run(sys.executable, "-c", "raise SystemExit('said')") == (False, "said")
    slow = (sys.executable, "-c", "import time; time.sleep(9)")
    assert finding.run(*slow, seconds=0.1) == (False, f"{sys.executable} gave no answer within 0 s")


def test_a_node_reads_and_writes_the_store(tmp_path, monkeypatch):
    """The script that srun would run on a node, run here."""
    monkeypatch.setenv("TSPACE_STORE", str(tmp_path / "a store"))
    (tmp_path / "Snakefile").touch()
    workspace = Workspace(tmp_path)
    asked = []

    def here(*command, seconds):
        asked.extend(command)
        return finding.run(*command[command.index("sh") :], seconds=seconds)

    settings = {"default-resources": {"slurm_partition": "main"}, "latency-wait": 0.1}
    found = site.check_node(workspace, settings, here)
    assert found.level == "ok", found
    assert asked[0] == "srun" and "--partition=main" in asked
    assert list((tmp_path / "a store").iterdir()) == []
    elsewhere = site.check_node(workspace, settings, lambda *_, seconds: (True, "n1"))
    assert elsewhere.level == "fail" and "does not show here within 0.1 s" in elsewhere.text
    (tmp_path / "Snakefile").unlink()
    assert site.check_node(workspace, settings, here).level == "fail"
