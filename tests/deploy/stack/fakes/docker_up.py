"""Starts a service of a compose project as a process: `docker_up.py FILE SERVICE`."""

import json
import os
import subprocess
import sys
from pathlib import Path

FAKES = Path(os.environ["FAKES"])
RUN = FAKES / "state" / "run"

file, name = sys.argv[1:]
service = json.loads(Path(file).read_text())["services"][name]
env = {"PATH": os.environ["PATH"], "FAKES": str(FAKES), "HOME": str(FAKES)}
for variables in service["env_file"]:
    for line in Path(variables).read_text().splitlines():
        key, _, value = line.partition("=")
        env[key] = value.strip("'")
env |= service.get("environment", {})
program, *words = service["command"]
command = [str(Path((FAKES / "set" / "programs").read_text().strip()) / program), *words]
with (RUN / f"{name}.service.log").open("ab") as log:
    child = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
(RUN / f"{name}.service").write_text(f"{child.pid}\n")
with (FAKES / "state" / "ups").open("a") as ups:
    ups.write(f"{name}\n")
