# SPDX-License-Identifier: Apache-2.0
# smoke.sh PYTHON TORCH WHEEL FOLDER: install the wheel in a clean environment FOLDER/PYTHON-TORCH, and use it.
set -eu
unset PYTHONPATH
environment=$4/$1-$2
echo "$1, $2"
"$1" -m venv "$environment"
"$environment/bin/pip" install --quiet --upgrade "$2" "$3"
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$environment/bin" && pwd)
cd "$environment"
# Every symbol at load: none may be missing from this machine's glibc by the version that was linked.
LD_BIND_NOW=1 "$bin/python" "$here/smoke.py"
"$bin/microspec" info
