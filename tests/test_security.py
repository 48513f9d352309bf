"""What docs/security.md promises of the code and of the files of the repository."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
MAY_IMPORT = {("platform/diffplan/checkpoint.py", "pickle")}
"""For the name of the exception that `torch.load(weights_only=True)` raises."""
FORBIDDEN = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle"}
FORBIDDEN_METHODS = {"restore", "from_checkpoint", "load_state_dict_from_url"}
"""Of Ray's `Tuner`, of RLlib's `Algorithm` and of PyTorch's hub: they unpickle."""


def list_sources() -> list[Path]:
    return [path for name in ("platform", "envs", "jobs", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))]


def find_faults(path: Path, text: str) -> Iterator[str]:
    """What in a module may run code that lies in a file."""
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(text)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(node.module or "").split(".")[0]]
        for module in modules:
            if module in UNPICKLING and (name, module) not in MAY_IMPORT:
                yield f"{name}:{node.lineno} imports {module}"  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {each.arg: each.value for each in node.keywords}
        is_true = {key: isinstance(value, ast.Constant) and value.value is True for key, value in options.items()}
        if (
            called in FORBIDDEN
            or (isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS)
            or called.startswith("pickle.load")
            or (called == "torch.load" and not is_true.get("weights_only"))
            or ("allow_pickle" in options and ast.unparse(options["allow_pickle"]) != "False")
        ):
            yield f"{name}:{node.lineno} calls {ast.unparse(node)[:80]}"


def test_nothing_that_is_read_can_run() -> None:
    sources = list_sources()
    assert len(sources) > 100
    assert not [fault for path in sources for fault in find_faults(path, path.read_text())]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "tune.Tuner.restore(path, trainable=f)",
        "yaml.load(text)",
    ],
)
def test_faults_would_be_found(text: str) -> None:
    assert list(find_faults(ROOT / "platform/diffplan/somewhere.py", text))


def test_no_file_of_the_repository_holds_a_token_or_a_key() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    secret = re.compile(
        rb"RAY_AUTH_TOKEN[\"']?\s*[=:]\s*[\"']?[0-9a-zA-Z]{16}|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY"
        rb"|hf_[0-9a-zA-Z]{30}|gh[ps]_[0-9a-zA-Z]{30}"
    )
    names = [name for name in listed.stdout.split("\0") if name]
    assert len(names) > 100
    assert not [name for name in names if (ROOT / name).is_file() and secret.search((ROOT / name).read_bytes())]


def test_nothing_of_ours_listens_on_all_networks() -> None:
    places = [*list_sources(), ROOT / "cluster.yaml", ROOT / "Makefile", *(ROOT / "docs").rglob("*.yaml")]
    assert not [path for path in places if re.search(r"0\.0\.0\.0|host=[\"']::", path.read_text())]
