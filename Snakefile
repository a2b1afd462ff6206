# Places the jobs of one fan-out stage. `tspace <stage>` writes the plan (which entries of the store
# are missing) and calls this; a profile decides where the jobs run.
import json

if "plan" not in config:
    raise WorkflowError("this workflow is called by `tspace train` and its like; run `dvc repro`")

with open(config["plan"]) as f:
    PLAN = json.load(f)

JOBS = PLAN["jobs"]
RUN = PLAN["run"]


wildcard_constraints:
    job="[a-z]+-[0-9a-f]+",


localrules:
    all,


rule all:
    input:
        expand("{run}/{job}.done", run=RUN, job=JOBS),


# One rule a kind, so that a profile can set resources for each.
for kind in sorted({job["kind"] for job in JOBS.values()}):

    rule:
        name:
            kind
        input:
            lambda wildcards: [f"{RUN}/{need}.done" for need in JOBS[wildcards.job]["needs"]],
        output:
            touch(f"{RUN}/{{job,{kind}-[0-9a-f]+}}.done"),
        log:
            f"{RUN}/{{job}}.log",
        params:
            tspace=PLAN["tspace"],
            root=PLAN["root"],
            store=PLAN["store"],
            name=lambda wildcards: JOBS[wildcards.job]["name"],
        threads: lambda wildcards: JOBS[wildcards.job]["threads"]
        priority: lambda wildcards: JOBS[wildcards.job]["priority"]
        shell:
            "{params.tspace} job --root {params.root} --store {params.store} {params.name}"
            " > {log} 2>&1"
