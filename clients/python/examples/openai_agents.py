"""OpenAI Agents SDK. The model is scripted; leave `model=` out to use a hosted one.

Tools that the provider runs on its own servers (web search, code interpreter, hosted MCP) never reach this code, so
nothing can ask before them.
"""

import asyncio
import json
from typing import Any

from agents import Agent, Model, ModelResponse, RunContextWrapper, Runner, Usage, function_tool, set_tracing_disabled
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from stage0 import guarded


def refusal(_: RunContextWrapper[Any], error: Exception) -> str:
    """What the model reads after an exception of the tool: the text of `NotAllowed` says what can be done."""
    return f"not done: {error}"


@function_tool(failure_error_function=refusal)
@guarded(tool="invoices", effects=["read"])
async def read_invoice(number: str) -> str:
    """Reads an invoice."""
    return f"invoice {number}: 120 USD to Example Ltd"


@function_tool(failure_error_function=refusal)
@guarded(
    tool="payments",
    effects=["payment"],
    goal=lambda number, amount: f"Pay {amount} USD for invoice {number}",
    constraints=["approval_required", "allowed_tools: payments"],
    success_criteria=["the invoice is paid once"],
)
async def pay_invoice(number: str, amount: float) -> str:
    """Pays an invoice."""
    print(f"PAYS {amount} USD")
    return "paid"


SCRIPT = [("read_invoice", {"number": "8841"}), ("pay_invoice", {"number": "8841", "amount": 120.0})]


class ScriptedModel(Model):
    """Calls one tool after the other."""

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:  # noqa: A002
        done = sum(isinstance(item, dict) and item.get("type") == "function_call_output" for item in input)
        output: Any
        if done < len(SCRIPT):
            name, arguments = SCRIPT[done]
            output = ResponseFunctionToolCall(
                type="function_call", call_id=f"call-{done}", name=name, arguments=json.dumps(arguments)
            )
        else:
            text = ResponseOutputText(type="output_text", text="I am done.", annotations=[])
            output = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def main() -> None:
    set_tracing_disabled(True)
    agent = Agent(name="clerk", model=ScriptedModel(), tools=[read_invoice, pay_invoice])
    result = await Runner.run(agent, "Pay invoice 8841")
    for item in result.new_items:
        if item.type == "tool_call_output_item":
            print(f"tool: {item.output}")


if __name__ == "__main__":
    asyncio.run(main())
