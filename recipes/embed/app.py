"""Answer one message with a model that edgeft exported: `python app.py MODEL TEXT`.

MODEL is a bundle, a GGUF file or an ONNX folder. Needs `edgeft` and its backend: `pip install 'edgeft[gguf]'` for
GGUF, `'edgeft[onnx]'` for ONNX.
"""

import sys

from edgeft import runtime
from edgeft.errors import EdgeftError


def main() -> int:
    path, text = sys.argv[1:]
    try:
        with (
            runtime.load(path) as model,
            model.chat([{"role": "user", "content": text}], max_new_tokens=64, stream=True) as answer,
        ):
            for piece in answer:
                print(piece, end="", flush=True)
    except EdgeftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
