# Runs the jobs of one fan-out stage. `tspace <stage>` writes the plan (which entries of the store are
# missing) and calls this; a profile decides where the jobs run. Paths are relative to the checkout,
# because its own path may contain braces, which would be wildcards here.
import json
import shlex

if "plan" not in config:
    raise WorkflowError(
        "this workflow is called by `tspace train` and its like; run `dvc repro`"
    )

with open(config["plan"]) as f:
    PLAN = json.load(f)

JOBS = PLAN["jobs"]
RUN = PLAN["run"]


def place(job):
    return f"{RUN}/{JOBS[job]['recipe']}/{job}.done"


def job_command(job):
    options = ["--root", PLAN["root"], "--store", PLAN["store"]]
    return shlex.join([PLAN["tspace"], "job", *options, *JOBS[job]["names"]])


wildcard_constraints:
    recipe="[a-z0-9_-]+",
    job="[A-Za-z0-9-]+",


localrules:
    all,


rule all:
    input:
        [place(job) for job in JOBS],


# One rule per kind, so that a profile can set resources for each; a wildcard for the recipe, so that
# it can tell recipes apart.
for kind in sorted({job["kind"] for job in JOBS.values()}):

    rule:
        name:
            kind
        input:
            lambda wildcards: [place(need) for need in JOBS[wildcards.job]["needs"]],
        output:
            touch(f"{RUN}/{{recipe}}/{{job,{kind}-[A-Za-z0-9-]+}}.done"),
        log:
            f"{RUN}/{{recipe}}/{{job}}.log",
        priority: lambda wildcards: JOBS[wildcards.job]["priority"]
        conda:
            "envs/tspace.yaml"
        threads: lambda wildcards: JOBS[wildcards.job]["threads"]
        params:
            # A profile's resource: a command that runs the job elsewhere, such as `srun`.
            launch=lambda wildcards, resources: resources.get("launch", ""),
            command=lambda wildcards: job_command(wildcards.job),
        shell:
            "{params.launch} {params.command} > {log:q} 2>&1"
