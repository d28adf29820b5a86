"""Pydantic AI. The model is scripted by its own `FunctionModel`; name a hosted one in its place."""

import asyncio
from typing import Any

from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelMessage, ModelResponse, RetryPromptPart, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stage0 import NotAllowed, guarded

SCRIPT: list[tuple[str, dict[str, Any]]] = [
    ("read_invoice", {"number": "8841"}),
    ("pay_invoice", {"number": "8841", "amount": 120.0}),
]


def model(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    answers = [
        part for message in messages for part in message.parts if isinstance(part, ToolReturnPart | RetryPromptPart)
    ]
    if len(answers) < len(SCRIPT):
        name, arguments = SCRIPT[len(answers)]
        return ModelResponse(parts=[ToolCallPart(name, arguments)])
    return ModelResponse(parts=[TextPart("I am done.")])


agent = Agent(FunctionModel(model))


@guarded(tool="invoices", effects=["read"])
async def read(number: str) -> str:
    return f"invoice {number}: 120 USD to Example Ltd"


@guarded(
    tool="payments",
    effects=["payment"],
    goal=lambda number, amount: f"Pay {amount} USD for invoice {number}",
    constraints=["approval_required", "allowed_tools: payments"],
    success_criteria=["the invoice is paid once"],
)
async def pay(number: str, amount: float) -> str:
    print(f"PAYS {amount} USD")
    return "paid"


@agent.tool_plain
async def read_invoice(number: str) -> str:
    """Reads an invoice."""
    return await as_result(read(number))


@agent.tool_plain
async def pay_invoice(number: str, amount: float) -> str:
    """Pays an invoice."""
    return await as_result(pay(number, amount))


async def as_result(call: Any) -> str:
    """The model reads the refusal and goes on; without this, the exception would end the run."""
    try:
        result: str = await call
    except NotAllowed as refusal:
        raise ModelRetry(f"not done: {refusal}") from refusal
    return result


async def main() -> None:
    result = await agent.run("Pay invoice 8841")
    for message in result.all_messages():
        for part in message.parts:
            if isinstance(part, ToolReturnPart | RetryPromptPart):
                print(f"{part.tool_name}: {part.content}")


if __name__ == "__main__":
    asyncio.run(main())
