"""The house as it is drawn: who may import whom, what is public, how long a file may be."""

import ast
import importlib
import pathlib
import re

import pytest

import vllm_bridge

PACKAGE = pathlib.Path(vllm_bridge.__file__).parent
ROOT = PACKAGE.parent

# What each folder, or file of the root, may import beside itself: only what lies below it.
GROUND = {"errors", "nesting", "version", "sse"}
LIBRARY = GROUND | {"http1", "config", "api", "client", "operations", "provider", "vllm"}
BELOW = {
    "errors": {"nesting"}, "nesting": set(), "version": set(), "sse": {"errors"},
    "http1": {"errors", "version"},
    "config": {"errors", "http1"},
    "api": GROUND | {"http1"},
    "client": GROUND | {"http1", "config", "api"},
    "operations": GROUND | {"http1", "config", "api", "client"},
    "provider": LIBRARY - {"provider", "vllm"}, "vllm": LIBRARY - {"vllm"},
    "__init__": LIBRARY,
    "server": {"errors", "http1"},
    "gateway": LIBRARY | {"server"},
    "echo": {"errors"},
    "batch": LIBRARY,
    "cli": LIBRARY | {"gateway", "batch"}, "__main__": {"cli"},
}
PURE = {"api", "http1", "errors", "nesting", "version", "sse"}
# Live connections.
NOT_PURE_IN_HTTP1 = {"http1.wait", "http1.limits", "http1.connection", "http1.tls", "http1.pool"}

# These alone know requests.
HTTP_ROOMS = {"client.session", "client.adapter", "client.failures", "client.raw"}
NOT_PURE = {"socket", "ssl", "select", "selectors", "threading", "_thread", "queue", "time", "asyncio", "subprocess",
            "signal", "http", "urllib.request", "requests", "urllib3", "concurrent", "multiprocessing", "random"}

LONGEST = 420  # lines; what passes about 400 asks to become two rooms
ASKING = {}  # these ask, and have not been answered yet
REFUSED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

PUBLIC = """
APIConnectionError APIStatusError APITimeoutError AuthenticationError BadRequestError BaseOpenAIProvider BridgeError
Cancellation ConfigError IncompleteStreamError InternalServerError Key NetworkConfig NotFoundError
PermissionDeniedError ProviderConfig ProxyConfig RateLimitError Record RequestCancelledError ResponseDecodeError Stream
Trace UnprocessableEntityError UnsupportedOperationError VLLMProvider __version__ audio image
""".split()

# Methods that a base class outside this project names and explains.
INHERITED = {"setup", "handle", "finish", "init_poolmanager", "proxy_manager_for"}
# What the standard library, requests, WSGI servers or a reader of the documentation call.
CALLED_BY_OTHERS = {
    "Blocks", "_print_message", "_repr_pretty_", "create_app", "emit", "formatMessage", "get_redirect_target",
    "handle_error", "handle_one_request", "log_message", "readlines", "server_bind", "writable",
}


class Room:
    """One file: its name from the package on, its place (the room of the floors), what it imports."""

    def __init__(self, path):
        self.path = path
        self.name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        self.place = self.name.partition(".")[0]
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.inside, self.outside, self.at_import = set(), set(), set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.outside.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                self.outside.add(node.module)
            elif isinstance(node, ast.ImportFrom):
                targets = self._targets(node)
                self.inside |= targets
                if node in self.tree.body:
                    self.at_import |= targets

    def _targets(self, node):
        parts = ["vllm_bridge"] + self.name.split(".")
        base = parts[:len(parts) - node.level]
        if node.module:
            return {".".join((base + node.module.split("."))[1:]) or "__init__"}
        return {".".join((base + [alias.name])[1:]) for alias in node.names}

    def __repr__(self):
        return self.name


ROOMS = [Room(path) for path in sorted(PACKAGE.rglob("*.py"))]
BY_NAME = {room.name: room for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS, ids=repr)
def test_a_room_imports_from_its_own_floor_and_below(room):
    assert room.place in BELOW, "%s has no floor: say in BELOW what it may import" % room.place
    for target in room.inside:
        place = target.partition(".")[0]
        assert place == room.place or place in BELOW[room.place], "%s imports %s" % (room, target)


def test_every_floor_is_there_and_only_floors_below_are_named():
    assert set(BELOW) == {room.place for room in ROOMS}
    for place, below in BELOW.items():
        assert all(place not in BELOW[other] for other in below)


def test_the_tests_lie_as_the_packages_lie():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    lying = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert lying - folders == {"live", "engines"}


def test_no_room_imports_itself_by_a_detour():
    done, path = set(), []

    def visit(name):
        name = name if name in BY_NAME else name + ".__init__"
        if name in done:
            return
        assert name not in path, " → ".join(path + [name])
        path.append(name)
        for target in BY_NAME[name].at_import:
            visit(target)
        done.add(path.pop())

    for room in ROOMS:
        visit(room.name)
    assert done == set(BY_NAME)


@pytest.mark.parametrize("room", [room for room in ROOMS if room.place in PURE and room.name not in NOT_PURE_IN_HTTP1],
                         ids=repr)
def test_the_pure_floor_knows_no_sockets_clocks_or_threads(room):
    for name in room.outside:
        parts = name.split(".")
        assert not NOT_PURE & {".".join(parts[:length]) for length in range(1, len(parts) + 1)}, name


def test_few_rooms_know_requests():
    http = ("requests", "urllib3")
    assert {room.name for room in ROOMS for name in room.outside if name.partition(".")[0] in http} == HTTP_ROOMS


def test_the_package_imports_itself_relatively():
    assert not [room for room in ROOMS if any(name.partition(".")[0] == "vllm_bridge" for name in room.outside)]


def test_the_public_names():
    assert sorted(vllm_bridge.__all__) == vllm_bridge.__all__ == sorted(PUBLIC)
    assert all(getattr(vllm_bridge, name) is not None for name in PUBLIC)
    assert re.match(r"\d+\.\d+\.\d+", vllm_bridge.__version__)
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("room", [room for room in ROOMS if not room.name.endswith("__main__")], ids=repr)
def test_a_room_has_what_its_all_names(room):
    module = importlib.import_module("vllm_bridge." + room.name if room.name != "__init__" else "vllm_bridge")
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("room", ROOMS, ids=repr)
def test_every_public_name_says_what_it_does(room):
    assert ast.get_docstring(room.tree), "the file has no docstring"
    silent = []

    def visit(body, prefix):
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            fields_only = isinstance(node, ast.ClassDef) and all(isinstance(line, ast.AnnAssign) for line in node.body)
            if not ast.get_docstring(node) and not fields_only and node.name not in INHERITED:
                silent.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, prefix + node.name + ".")

    visit(room.tree.body, "")
    assert silent == []


def left_over(trees, others=""):
    """Return the functions, classes and methods that nothing outside their own definition names.

    A mention in a docstring, an import or ``__all__`` is no use.
    """
    used = {}
    for name in re.findall(r"\w+", others):
        used[name] = used.get(name, 0) + 1
    for tree in trees:
        for name in names_in(ast.Module([line for line in tree.body if not is_name_list(line)], [])):
            used[name] = used.get(name, 0) + 1
    found = []
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if used.get(node.name, 0) <= names_in(node).count(node.name):
                    found.append(node.name)
    return found


def names_in(tree):
    found = [node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(tree)
             if isinstance(node, (ast.Name, ast.Attribute))]
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    annotations = [re.sub(r"^Unpack\[(\w+)\]$", r"\1", word) for word in words]
    return found + [word for word in annotations if word.isidentifier()]  # getattr by name


def is_name_list(line):
    return isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "__all__"


def test_no_function_or_class_is_left_over():
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*")
                        if path.is_file() and path.suffix in ("", ".py", ".sh"))
    found = left_over([room.tree for room in ROOMS], scripts + (ROOT / "setup.cfg").read_text())
    known = set(PUBLIC) | INHERITED | CALLED_BY_OTHERS | set(dir(vllm_bridge.VLLMProvider))
    assert [name for name in found if not name.startswith("__") and name not in known] == []


def test_what_is_left_over_would_be_noticed():
    """A function that only calls itself, is imported, named in a docstring and in ``__all__`` is left over."""
    first = "__all__ = ['gone', 'used']\ndef gone():\n    'See gone.'\n    gone()\ndef used(): pass\n"
    second = "from first import gone, used\nused()\nclass Kept:\n    def forgotten(self): pass\nKept()\n"
    assert left_over([ast.parse(first), ast.parse(second)]) == ["gone", "forgotten"]


def test_the_changelog_says_where_modules_are():
    rows = re.findall(r"^\| `.*\| (`.*`) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    named = {name.replace("vllm_bridge.", "") for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert len(named) > 30
    assert [name for name in named if name not in BY_NAME and name + ".__init__" not in BY_NAME] == []


# ---------------------------------------------------------------- files

FILES = [path for folder in ("vllm_bridge", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("room", ROOMS, ids=repr)
def test_a_file_is_one_thing(room):
    assert len(room.text.splitlines()) <= ASKING.get(room.name, LONGEST)


def test_a_file_that_was_shortened_asks_no_more():
    assert [name for name in ASKING if len(BY_NAME[name].text.splitlines()) <= LONGEST] == []


def test_no_file_has_a_name_that_says_nothing():
    assert [path for path in FILES if path.stem in REFUSED_NAMES or path.parent.name in REFUSED_NAMES] == []


def test_no_line_points_at_a_document_that_is_not_here():
    named = re.compile(r"\b(\w+\.md)\b|\b[A-Z]{4,} §|\b[Ww]e decided\b|\bissues? \d")
    scripts = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file()]
    pages = [page for pattern in ("*.md", ".github/*.md", "scripts/*.md", "tests/*.md", "vllm_bridge/**/*.md")
             for page in sorted(ROOT.glob(pattern))]
    here = {page.name for page in pages}
    pointing = []
    for path in FILES + pages + scripts:
        for line in path.read_text(encoding="utf-8").splitlines():
            for match in named.finditer(line):
                if match.group(1) not in here:
                    pointing.append("%s: %s" % (path.relative_to(ROOT), line.strip()))
    assert pointing == []
