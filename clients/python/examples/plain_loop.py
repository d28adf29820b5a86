"""An agent without a library: a loop, a model, and two tools. The model is scripted.

stage0 dev &
python plain_loop.py
"""

from collections.abc import Callable

from stage0 import NotAllowed, guarded


@guarded(tool="invoices", effects=["read"], arguments=["number"])
def read_invoice(number: str) -> str:
    """Reading is harmless, so the policy allows it."""
    return f"invoice {number}: 120 USD to Example Ltd"


@guarded(
    tool="payments",
    effects=["payment"],
    goal=lambda number, amount: f"Pay {amount} USD for invoice {number}",
    targets=["number"],
    constraints=["approval_required", "allowed_tools: payments"],
    success_criteria=["the invoice is paid once"],
)
def pay_invoice(number: str, amount: float) -> str:
    """Does not run until a person has approved exactly these arguments."""
    print(f"PAYS {amount} USD")
    return "paid"


TOOLS: dict[str, Callable[..., str]] = {"read_invoice": read_invoice, "pay_invoice": pay_invoice}


def model(messages: list[str]) -> tuple[str, dict[str, object]] | None:
    """Stands for a hosted model: the next call, or None at the end."""
    script: list[tuple[str, dict[str, object]]] = [
        ("read_invoice", {"number": "8841"}),
        ("pay_invoice", {"number": "8841", "amount": 120.0}),
    ]
    return script[len(messages)] if len(messages) < len(script) else None


def main() -> None:
    messages: list[str] = []
    while call := model(messages):
        name, arguments = call
        try:
            result = TOOLS[name](**arguments)
        except NotAllowed as refusal:
            # The text says what the model, or a person, can do about it.
            result = f"not done: {refusal}"
        print(f"{name}: {result}")
        messages.append(result)


if __name__ == "__main__":
    main()
