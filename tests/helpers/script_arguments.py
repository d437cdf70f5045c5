"""Whether scripts take the arguments that a page or a table gives them: they end where they have parsed these."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from shell_lines import ROOT

# One process for all of them: they share seconds of imports.
PARSE = """
import argparse, contextlib, io, json, os, runpy, sys
from dalle_mini.commands.terminal import Parser

class Parsed(BaseException): pass

def ending_there(method):
    def parse(*args, **kwargs):
        method(*args, **kwargs)
        raise Parsed
    return parse

for parser in (argparse.ArgumentParser, Parser):
    for name in ("parse_args", "parse_intermixed_args"):
        setattr(parser, name, ending_there(getattr(parser, name)))
path, problems = list(sys.path), {}
for place, (script, *arguments) in json.loads(sys.argv[1]).items():
    sys.argv, sys.path[:], told = [script, *arguments], [os.path.dirname(os.path.abspath(script)), *path], io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            runpy.run_path(script, run_name="__main__")
            problems[place] = "the script parses no arguments"
        except Parsed:
            pass
        except SystemExit as stop:
            if stop.code:
                problems[place] = told.getvalue() or str(stop.code)
        except Exception as error:
            problems[place] = repr(error)
    for name in [name for name in sys.modules if getattr(sys.modules[name], "__file__", None) and
                 os.path.dirname(os.path.abspath(sys.modules[name].__file__)) == sys.path[0]]:
        del sys.modules[name]
print(json.dumps(problems))
"""


def script_problems(scripts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Name -> what is wrong with its words, a script's path and its arguments; nothing of those that are right."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps(scripts)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
