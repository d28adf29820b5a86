"""LangGraph: a graph of a model and its tools. The model is scripted; put a real one in the place of `model`."""

from langchain_core.messages import AIMessage, ToolCall
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from stage0 import NotAllowed, guarded


@guarded(tool="invoices", effects=["read"])
def read_invoice(number: str) -> str:
    """Reads an invoice."""
    return f"invoice {number}: 120 USD to Example Ltd"


@guarded(
    tool="payments",
    effects=["payment"],
    goal=lambda number, amount: f"Pay {amount} USD for invoice {number}",
    constraints=["approval_required", "allowed_tools: payments"],
    success_criteria=["the invoice is paid once"],
)
def pay_invoice(number: str, amount: float) -> str:
    """Pays an invoice."""
    print(f"PAYS {amount} USD")
    return "paid"


SCRIPT = [
    ToolCall(name="read_invoice", args={"number": "8841"}, id="call-1"),
    ToolCall(name="pay_invoice", args={"number": "8841", "amount": 120.0}, id="call-2"),
]


def model(state: MessagesState) -> dict[str, list[AIMessage]]:
    done = sum(message.type == "tool" for message in state["messages"])
    calls = SCRIPT[done : done + 1]
    return {"messages": [AIMessage("" if calls else "I am done.", tool_calls=calls)]}


def main() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    # A refusal becomes the tool's error message. Any other exception still ends the run.
    graph.add_node("tools", ToolNode([read_invoice, pay_invoice], handle_tool_errors=(NotAllowed,)))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    result = graph.compile().invoke({"messages": [("user", "Pay invoice 8841")]})
    for message in result["messages"]:
        if message.type == "tool":
            print(f"{message.name}: {message.status}: {message.content}")


if __name__ == "__main__":
    main()
