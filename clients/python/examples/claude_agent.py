"""Claude Agent SDK: a hook that asks before every tool, the agent's own tools included.

The hook is given to `ClaudeAgentOptions`, and the agent calls it before each tool. `can_use_tool` alone is not enough:
the agent does not call it for tools that its settings already permit. Without an account of the provider the agent
itself cannot run, so this calls the hook as the SDK would, with the SDK's types.
"""

import asyncio
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, HookMatcher
from claude_agent_sdk.types import HookContext, HookInput, HookJSONOutput, PreToolUseHookInput

from stage0 import AsyncClient, NotAllowed

client = AsyncClient(agent="claude-agent-sdk")

# What each tool can do. A tool that is not listed counts as one that changes things for good.
EFFECTS = {"Read": ["read"], "Grep": ["read"], "Write": ["file_write"]}


async def ask_stage0(event: HookInput, _: str | None, __: HookContext) -> HookJSONOutput:
    tool, arguments = event["tool_name"], event["tool_input"]  # type: ignore[typeddict-item]
    try:
        # The agent runs the tool itself, after the hook: so the outcome is not known here and not reported.
        async with client.action(
            tool=tool,
            effects=EFFECTS.get(tool, ["delete"]),
            arguments=arguments,
            run_id=event["session_id"],
            constraints=["approval_required"],
            success_criteria=["the user's task is done"],
            report=False,
        ):
            return {}
    except NotAllowed as refusal:
        return deny(str(refusal))
    except Exception as error:  # noqa: BLE001 - an exception of a hook would let the tool run
        return deny(f"not decided: {type(error).__name__}")


def deny(why: str) -> HookJSONOutput:
    return {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": "deny",
            "permissionDecisionReason": why,
        }
    }


OPTIONS = ClaudeAgentOptions(hooks={"PreToolUse": [HookMatcher(hooks=[ask_stage0])]})


async def main() -> None:
    assert OPTIONS.hooks
    (matcher,) = OPTIONS.hooks["PreToolUse"]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("Read", {"file_path": "/work/build.log"}),
        ("Bash", {"command": "rm -rf /work"}),
    ]
    for tool, arguments in calls:
        event = PreToolUseHookInput(
            hook_event_name="PreToolUse",
            session_id="session-1",
            transcript_path="",
            cwd="/work",
            tool_name=tool,
            tool_input=arguments,
            tool_use_id="toolu_1",
        )
        answer: Any = await matcher.hooks[0](event, "toolu_1", HookContext(signal=None))
        denied = answer.get("hookSpecificOutput", {}).get("permissionDecisionReason")
        print(f"{tool}: {denied or 'RUNS'}")


if __name__ == "__main__":
    asyncio.run(main())
