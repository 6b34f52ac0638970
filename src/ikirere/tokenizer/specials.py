"""The special tokens: one list, the same ids in every tokenizer trained here.

They are reached by id only: no text is encoded to one of them.
"""

from __future__ import annotations

PAD = "<pad>"
BOS = "<bos>"
EOS = "<eos>"  # ends a document
NEWLINE = "<nl>"
TAB = "<tab>"
INDENT = "<indent>"
DEDENT = "<dedent>"
SCRATCHPAD = "<scratchpad>"
SCRATCHPAD_END = "</scratchpad>"
CALL_TOOL = "<call_tool>"
CALL_TOOL_END = "</call_tool>"
TOOL_RESULT = "<tool_result>"
TOOL_RESULT_END = "</tool_result>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"  # ends a turn

SPECIALS: tuple[str, ...] = (
    PAD,
    BOS,
    EOS,
    NEWLINE,
    TAB,
    INDENT,
    DEDENT,
    SCRATCHPAD,
    SCRATCHPAD_END,
    CALL_TOOL,
    CALL_TOOL_END,
    TOOL_RESULT,
    TOOL_RESULT_END,
    SYSTEM,
    USER,
    ASSISTANT,
    END,
)
