"""The command line. Everything heavy is imported by the command that needs it, so `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from diffplan.errors import DiffplanError, Terminated

HELP = """\
diffplan: planning with diffusion on Ray.

usage: diffplan COMMAND [arguments]

commands
  collect PRESET --out DIR        roll out an environment with Ray actors into a dataset
  train PRESET --data DIR --out DIR
                                  fit a diffuser with Ray Train, leave a checkpoint
                                  (--dry_run: only what that would cost)
  train --list                    show all presets with their sizes and rough training times
  calibrate CHECKPOINT            measure consistency, fit the models that make planning fast
  tune CHECKPOINT --out DIR       search planner settings with Ray Tune (--study NAME: what else can be searched)
  tune DATA --study training --preset PRESET --out DIR
                                  search what is trained
  tune --list                     show all studies with their sizes and rough times
  evaluate CHECKPOINT [--protocol NAME] --out DIR
                                  score plans in parallel actors
  plan CHECKPOINT --start X Y --goal X Y
                                  make one plan, under way-points and guides, and draw it
  report RUN                      write the report page of a run
  status RUN                      what of a run is done, running, interrupted or failed, and what it has cost
  pipeline PRESET                 all of the above in one run directory
  data info|stats|head DIR        look at a dataset
  data verify|compact|sweep DIR   check every byte of it, join small shards, delete what is left over
  data import|export|merge        from and to Minari, D4RL and Parquet; several datasets to one
  baseline train cql|iql DATA --out DIR
                                  train a baseline on a dataset with RLlib
  table1                          the paper's Table 1: every stage above, and the baselines
  submit COMMAND ...              a command as a job of a Ray cluster (`ray job` looks at such jobs, or ends them)

`diffplan COMMAND --help` lists the arguments of a command; collect, train, tune, evaluate and pipeline go on with
--resume, table1 by itself.
{presets}
"""

RESUMABLE = ("collect", "train", "tune", "evaluate", "pipeline")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    It is 0, 2 for what the user can cure, 130 after Ctrl-C, 143 after SIGTERM, and 1 for a failed job.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        import textwrap

        from diffplan.tasks.registry import list_presets

        names = textwrap.fill(
            ", ".join(list_presets()), 100, initial_indent="presets: ", subsequent_indent="  ", break_on_hyphens=False
        )
        sys.stdout.write(HELP.format(presets=names))
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(version("diffplan") + "\n")
        return 0
    return run_command(arguments[0], arguments[1:])


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one command with its arguments and return its exit code; see `main`."""
    try:
        return _find_command(name)(list(arguments)) or 0
    except DiffplanError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as interrupt:
        kept = "; what is done is kept: go on with --resume" if name in RESUMABLE else ""
        sys.stderr.write(f"interrupted{kept}\n")
        return 143 if isinstance(interrupt, Terminated) else 130
    except BrokenPipeError:  # the reader of our output has seen enough, as in `diffplan data info DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _find_command(name: str) -> Callable[[list[str]], int | None]:
    """The function of a command; it returns an exit code, or None for 0."""
    from diffplan.suggestion import unknown_name

    names = (
        *("collect", "train", "calibrate", "tune", "evaluate", "plan", "report", "pipeline", "data", "baseline"),
        *("status", "table1", "submit"),
    )
    if name not in names:
        from diffplan.errors import ConfigError

        raise ConfigError(unknown_name("command", name, names))
    if name in ("calibrate", "plan"):
        from diffplan import planning_commands

        return getattr(planning_commands, name)
    if name == "tune":
        from diffplan import tuning_commands

        return tuning_commands.tune
    if name == "status":
        from diffplan import status_commands

        return status_commands.status
    if name == "table1":
        from diffplan import table1_commands

        return table1_commands.table1
    if name == "baseline":
        from diffplan import baseline_commands

        return baseline_commands.run
    if name == "submit":
        from diffplan import submit_commands

        return submit_commands.submit
    from diffplan import commands

    return getattr(commands, name)


if __name__ == "__main__":
    sys.exit(main())
