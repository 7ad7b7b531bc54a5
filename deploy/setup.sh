#!/bin/sh
# Makes .venv: tailrace with the gpu or cpu extra, whichever this machine has, and what the tests need.
# Called by the Makefile and the Dockerfiles; needs Python >= 3.11 and a C++ compiler. PYTHON chooses the interpreter,
# EXTRA the extra.
set -eu

python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    echo "setup: $("$python" --version) found, Python 3.11 to 3.13 is needed; set PYTHON=/path/to/python3.x" >&2
    exit 1
}
command -v g++ >/dev/null || { echo "setup: no g++ found; DeepSpeed compiles a small helper with it" >&2; exit 1; }

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then extra=gpu; else extra=cpu; fi
extra=${EXTRA:-$extra}
echo "setup: installing tailrace[$extra,dev] into $venv (a minute or two)"

"$python" -m venv "$venv"
py=$venv/bin/python
"$py" -m pip install -q --disable-pip-version-check uv

# uv does not read pip's configuration; a machine that points pip at wheels of its own expects it to be honoured.
configured() {
    "$py" -m pip config list | sed -n "s/^\(global\|install\|:env:\)\.$1='\(.*\)'$/\2/p" | tr '\n' ' '
}
export UV_FIND_LINKS="${UV_FIND_LINKS:-$(configured find-links | tr -s ' ' ',' | sed 's/^,//; s/,$//')}"
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
index=$(configured index-url | awk '{print $1}')
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"

# Bytecode is compiled now: torch, vLLM and transformers take half a minute to start without it.
install() { "$py" -m uv pip install -q --python "$py" --compile-bytecode "$@" -e ".[$extra,dev]"; }
# The CPU build of torch is on no general index; where pip was not told of one, uv knows PyTorch's own.
if [ "$extra" = cpu ]; then install || install --torch-backend cpu; else install; fi

# The CPU build of vLLM asks for these, and a general index serves their CUDA builds, whose import then breaks every
# transformers model. Text models need none of them.
if ! "$py" -c 'import torchvision' >/dev/null 2>&1; then
    "$py" -m uv pip uninstall -q --python "$py" torchvision torchaudio torchcodec
fi
"$py" -c 'import torch, transformers, vllm' >/dev/null
