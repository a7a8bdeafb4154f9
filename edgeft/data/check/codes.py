"""Every problem `edgeft data check` knows, by its code. A code never changes its meaning.

E: an error, the data should not be trained on as it is. W: a warning, look at it. I: for information.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A kind of problem: `title` says what it is, `advice` what to do, `fix` what --fix does about it."""

    code: str
    title: str
    advice: str
    fix: str = ""

    @property
    def severity(self) -> str:
        return {"E": "error", "W": "warning", "I": "info"}[self.code[0]]


DROP, CLEAN = "the line is dropped", "the text is cleaned"

CODES = {
    code.code: code
    for code in (
        Code("E101", "broken JSON", "mend the line: one JSON object a line", DROP),
        Code("E102", "not UTF-8", "save the file as UTF-8, or import it with --encoding", DROP),
        Code("E103", "not an object", "each line must be a JSON object", DROP),
        Code("E104", "a key given twice in one object", "keep one of the two values", DROP),
        Code("E105", "NaN or Infinity, which JSON has not", "write null or a number", DROP),
        Code("W106", "byte order mark at the start of the file", "save as UTF-8 without BOM", "the mark is removed"),
        Code("E107", "a JSON object inside a JSON string", "the line was encoded twice: decode it once", DROP),
        Code("E108", "not a row of the file's format", "mend the row, or import the file with --map", DROP),
        Code("E109", "the file ends inside a line", "the file was cut off: get it again whole", DROP),
        Code("E110", "half of a surrogate pair", "the text was cut inside a character", DROP),
        Code("W111", "another encoding than UTF-8", "look at the letters; save the file as UTF-8", "written as UTF-8"),
        Code("W112", "bytes that are not UTF-8", "look at the letters; save the file as UTF-8", "written as UTF-8"),
        Code("E113", "no example in the file", "put examples there; it is empty"),
        Code("E201", "no list `messages`", "give each line a list of messages", DROP),
        Code("E202", "`messages` is empty", "remove the line", DROP),
        Code("E203", "a message is not an object", "write {role, content}", DROP),
        Code("E204", "unknown or missing role", "use system, developer, user, assistant or tool", DROP),
        Code("E205", "content is missing or not text", "write the content as text", DROP),
        Code(
            "E206", "content that is not text (image, audio, file)", "only text can be learned: remove the part", DROP
        ),
        Code("E207", "no assistant turn", "there is nothing to learn: add the answer or remove the line", DROP),
        Code("E208", "last turn is not the assistant's", "end the conversation with the answer", DROP),
        Code("E209", "system message not at the start", "move it to the front"),
        Code("W210", "two turns of one role in a row", "join them, or find the turn that is missing"),
        Code("W211", "the assistant speaks before any user", "check that the question was not lost"),
        Code("E212", "empty user turn", "remove the line or write the question", DROP),
        Code("E213", "empty answer", "remove the line or write the answer", DROP),
        Code("W214", "empty system message", "remove the message"),
        Code("E215", "weight is not 0 or 1", "write 0 (not learned) or 1 (learned)"),
        Code("E216", "every answer has weight 0", "there is nothing to learn: remove the line", DROP),
        Code("E217", "more than one system message", "join them into one"),
        Code("E301", "`tools` is not a list of function definitions", "write {type: function, function: {name}}"),
        Code("E302", "call of a tool that is not defined", "add the tool to `tools`, or mend the name"),
        Code("E303", "tool arguments are not JSON", "write the arguments as an object or its JSON text"),
        Code("E304", "tool arguments do not fit the tool's schema", "mend the arguments or the schema"),
        Code("E305", "tool call without result", "add the tool's message with this tool_call_id"),
        Code("E306", "tool result without call", "mend the tool_call_id, or add the call"),
        Code("E307", "tool parameters are no JSON Schema", "mend the tool's definition"),
        Code("E308", "tool call without id or function name", "write {id, type, function: {name, arguments}}"),
        Code("E309", "two tool calls with one id", "give each call its own id"),
        Code("E310", "parallel calls though parallel_tool_calls is false", "split the turn"),
        # W311 said that arguments must not be objects. Both forms are read; the code is not used again.
        Code("E312", "two tools with one name", "keep one"),
        Code(
            "I313",
            "tool data in an older or packed form",
            "it is read as tool_calls, tools and role tool",
            "the newer form is written",
        ),
        Code("W314", "nulls in a tool's schema or in arguments", "they are left out: Arrow pads with them", CLEAN),
        Code("W401", "mojibake (text decoded with the wrong encoding)", "repair it with ftfy", CLEAN),
        Code("E402", "control characters", "remove them", CLEAN),
        Code("E403", "special tokens in the text", "they would be read as commands to the model: remove them"),
        Code("W404", "replacement character U+FFFD", "the original text was lost: get it again"),
        Code("W405", "invisible or direction-changing characters", "remove them", CLEAN),
        Code("W406", "white space around the answer", "strip it: it would be learned", "it is stripped"),
        Code("W407", "unfilled placeholder in the answer", "fill it or remove the line"),
        Code("W408", "HTML markup in the answer", "strip it, unless HTML is what is asked for"),
        Code("W409", "the answer repeats itself", "remove the line"),
        Code("W410", "code block that is not closed", "the answer was cut off: get it again"),
        Code("W501", "exact duplicate", "keep one", DROP),
        Code("W502", "near duplicate", "keep one, unless the difference matters"),
        Code("E503", "the same example in another split", "remove it from the training file", "dropped from the first"),
        Code("W504", "a nearly equal example in another split", "remove it from the training file"),
        Code("W505", "one prompt with different answers", "decide for one: the model cannot learn both"),
        Code("E506", "the same prompt in another split", "remove it from the training file"),
        Code("W601", "longer than data.max_length", "it will be dropped or cut: raise max_length or shorten it"),
        Code("E602", "the chat template does not render it", "mend the conversation or the template"),
        Code("E603", "no token carries loss", "check the template: the answer is not found in it"),
        Code("E605", "the chat template leaves out a part of it", "use a template that writes it, or take it out"),
        Code("E606", "an answer is learned without an end token", "let the chat template write one behind answers"),
        Code("W604", "cut before its answer", "nothing of the answer fits max_length: it is dropped"),
        Code("W701", "labels out of balance", "collect more of the rare labels, or weight them"),
        Code("W702", "label with a single example", "collect more, or check the spelling"),
        Code("W703", "another language than the rest", "check that it belongs here"),
        Code("W704", "answer not in the format of the others", "bring it into the format of the others"),
        Code("E705", "answer does not fit the schema", "mend the answer"),
        Code("W706", "refusal", "remove it, unless refusing is what you teach"),
        Code("W707", "boilerplate", "remove the phrase: it would be learned"),
        Code("W708", "personal data", "replace it with `edgeft data redact`"),
        Code("W709", "label spelled in two ways", "use one spelling"),
        Code("W710", "the answer repeats the question", "check the answer"),
        Code("W711", "answer much longer than the others", "check that it belongs here"),
        Code("W713", "every answer is the same", "there is nothing to tell apart: add examples with other answers"),
        Code("I712", "few examples", "fine-tuning needs some dozens at least"),
        Code("E801", "preferred and rejected answer are the same", "remove the line", DROP),
        Code("E802", "rejected answer is missing or empty", "write it, or remove the line", DROP),
        Code("E803", "rejected answer does not end with the assistant", "end it with the assistant's turn", DROP),
    )
}


@dataclass(frozen=True)
class Finding:
    """One problem in one place. `line` 0 is the file as a whole."""

    code: str
    path: str
    line: int
    detail: str

    def __str__(self) -> str:
        code = CODES[self.code]
        where = f"{self.path}:{self.line}" if self.line else self.path
        detail = f" ({self.detail})" if self.detail else ""
        return f"{where}: {self.code} {code.title}{detail}; {code.advice}"
