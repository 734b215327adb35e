"""Responses tools and ``tool_choice`` → chat tools and ``tool_choice``."""

from typing import Any, Dict, List, Optional, Set, Tuple

from ...errors import BadRequestError
from ..folding import objects
from .client_tools import function_of
from .response import ToolName

__all__ = ["Toolbox"]

_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The input of the tool, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


class Toolbox:
    """The tools of one request, collected from ``tools`` and from ``additional_tools`` items.

    ``chat`` is what goes up; ``echo`` what the Response names as available; ``names`` maps a chat
    function to a tool of another name or kind; ``warnings`` names what was left out.
    """

    def __init__(self) -> None:
        self.chat: List[Dict[str, Any]] = []
        self.echo: List[Dict[str, Any]] = []
        self.names: Dict[str, ToolName] = {}
        self._clients: Dict[str, str] = {}  # the chat names of the tools that the client runs
        self._plain: Set[str] = set()  # the names of functions and custom tools, which keep them
        self.warnings: List[str] = []
        self.dropped: List[str] = []  # the types of tools that were left out

    def add_all(self, tools: Any, path: str) -> None:
        """Take in a list of tools; `path` is where it stands in the request, for messages."""
        if not isinstance(tools, list):
            raise BadRequestError("%s must be a list of tools" % path, param=path)
        self._plain.update(str(tool["name"]) for tool in objects(tools) if "name" in tool)
        for position, tool in enumerate(tools):
            where = "%s[%d]" % (path, position)
            if not isinstance(tool, dict):
                raise BadRequestError("%s must be an object with a type" % where, param=where)
            kept = self._add(tool, where, None)
            if kept is not None:
                self.echo.append(kept)

    def _add(self, tool: Dict[str, Any], where: str, namespace: Optional[str]) -> Optional[Dict[str, Any]]:
        """Add one tool and return its echo, or ``None`` when it is left out."""
        kind = tool.get("type")
        if kind == "function":
            return self._function(tool, where, namespace)
        if kind == "custom":
            return self._custom(tool, where, namespace)
        if kind == "namespace" and namespace is None:
            return self._namespace(tool, where)
        function = function_of(tool) if namespace is None else None
        if function is not None:
            name = self.client_name(str(kind))
            self._clients[str(kind)] = name
            self.names[name] = ToolName(str(kind), name)
            self._put({"name": name, **function})
            return tool
        # A hosted tool runs on OpenAI's own servers, so a vLLM server has nothing to run it with.
        self.warnings.append("tool '%s' was left out: vLLM does not offer it" % kind)
        self.dropped.append(str(kind))
        return None

    def client_name(self, kind: str) -> str:
        """Return the chat name of a tool that the client runs: its type, unless another tool is called so."""
        return self._clients.get(kind) or (kind + "_tool" if kind in self._plain else kind)

    def _put(self, function: Dict[str, Any]) -> None:
        tool = {"type": "function", "function": function}
        if tool not in self.chat:  # a client may name what it has found again
            self.chat.append(tool)

    def _function(self, tool: Dict[str, Any], where: str, namespace: Optional[str]) -> Dict[str, Any]:
        nested = tool.get("function")
        if isinstance(nested, dict):  # already in the chat form
            function = dict(nested)
        else:
            function = {key: value for key, value in tool.items() if key != "type" and value is not None}
        name = _name(function, where)
        if namespace is not None:
            function["name"] = chat_name(name, namespace)
            self.names[function["name"]] = ToolName("function", name, namespace)
        self._put(function)
        shown = dict({"description": None, "parameters": None, "strict": None}, **function)
        return dict(shown, type="function", name=name)

    def _custom(self, tool: Dict[str, Any], where: str, namespace: Optional[str]) -> Dict[str, Any]:
        name = _name(tool, where)
        function: Dict[str, Any] = {"name": chat_name(name, namespace)}
        description = _described(tool)
        if description:
            function["description"] = description
        function["parameters"] = _INPUT
        self.names[function["name"]] = ToolName("custom", name, namespace)
        self._put(function)
        return tool

    def _namespace(self, tool: Dict[str, Any], where: str) -> Optional[Dict[str, Any]]:
        name = _name(tool, where)
        inner = tool.get("tools")
        if not isinstance(inner, list):
            raise BadRequestError("%s.tools must be a list of tools" % where, param=where + ".tools")
        kept = []
        for position, item in enumerate(inner):
            path = "%s.tools[%d]" % (where, position)
            if not isinstance(item, dict):
                raise BadRequestError("%s must be an object with a type" % path, param=path)
            echo = self._add(item, path, name)
            if echo is not None:
                kept.append(echo)
        return dict(tool, tools=kept) if kept else None

    # ------------------------------------------------------------ tool_choice

    def choose(self, choice: Any) -> Tuple[Any, Any]:
        """Return the chat ``tool_choice`` and the one to echo, narrowing ``chat`` to allowed tools.

        Both are ``None`` when nothing is to be said to vLLM. Raise `BadRequestError` for a choice
        of no known form.
        """
        if choice is None:
            return None, None
        if isinstance(choice, str):
            return choice, choice
        kind = choice.get("type") if isinstance(choice, dict) else None
        if not isinstance(kind, str):
            raise BadRequestError(
                "tool_choice must be none, auto, required or an object with a type", param="tool_choice"
            )
        if kind == "allowed_tools":
            return self._allowed(choice), choice
        if kind in ("function", "custom"):
            if isinstance(choice.get("function"), dict):
                return choice, {"type": kind, "name": choice["function"].get("name")}
            return {"type": "function", "function": {"name": self._find(choice, "tool_choice")}}, choice
        if kind in self._clients:
            return {"type": "function", "function": {"name": self._clients[kind]}}, choice
        self.warnings.append("tool_choice '%s' was left out: vLLM does not offer that tool" % kind)
        return None, None

    def _allowed(self, choice: Dict[str, Any]) -> Any:
        # The allowed list may stand under a key of the chat API's own form.
        inner = choice.get("allowed_tools")
        allowed = inner if isinstance(inner, dict) else choice
        tools = allowed.get("tools")
        if not isinstance(tools, list):
            raise BadRequestError("tool_choice.tools must be a list of tools", param="tool_choice.tools")
        wanted = set()
        for position, tool in enumerate(tools):
            where = "tool_choice.tools[%d]" % position
            kind = tool.get("type") if isinstance(tool, dict) else None
            if not isinstance(kind, str):
                raise BadRequestError("%s must be an object with a type" % where, param=where)
            if kind in ("function", "custom"):
                wanted.add(self._find(tool, where))
            elif kind in self._clients:
                wanted.add(self._clients[kind])
            elif kind == "namespace":
                wanted.update(key for key, known in self.names.items() if known.namespace == tool.get("name"))
        self.chat = [tool for tool in self.chat if tool["function"]["name"] in wanted]
        return allowed.get("mode") or "auto"

    def _find(self, tool: Dict[str, Any], where: str) -> str:
        """Return the chat name of a tool that is named on its own."""
        nested = tool.get("function")
        name = _name(nested if isinstance(nested, dict) else tool, where)
        namespace = tool.get("namespace")
        if isinstance(namespace, str) and namespace:
            return chat_name(name, namespace)
        if any(known["function"]["name"] == name for known in self.chat):
            return name
        for key, stands_for in self.names.items():
            if stands_for.name == name:
                return key
        return name  # unknown: vLLM refuses it by name, in its own words


def chat_name(name: str, namespace: Any = None) -> str:
    """Return the name under which a tool, of a namespace perhaps, goes up."""
    if not isinstance(namespace, str) or not namespace:
        return name
    return namespace + name if namespace.endswith("__") else "%s__%s" % (namespace, name)


def _name(tool: Dict[str, Any], where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRequestError("%s.name is required: give the tool a name" % where, param=where + ".name")
    return name


def _described(tool: Dict[str, Any]) -> str:
    """Return the description of a custom tool, its grammar included, for the model to read."""
    told = [tool["description"]] if isinstance(tool.get("description"), str) else []
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        # A grammar inside a JSON string cannot be enforced, so the model is told of it.
        told.append("The input must match this %s grammar:\n%s" % (form.get("syntax"), form.get("definition")))
    return "\n\n".join(told)
