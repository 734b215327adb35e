# Finds Pythons, and makes virtual environments with them under .venvs/. The scripts beside it source this file.

unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX

say() {
    printf '%s\n' "$*" >&2
}

# pythons: every Python from 3.8 that can make environments, on PATH and under ~/.pyenv: "3.08 /its/path", oldest first.
pythons() {
    {
        number=8
        while [ "$number" -le 30 ]; do
            command -v "python3.$number"
            number=$((number + 1))
        done
        command -v python3
        command -v python
        ls -d "${HOME:-/nowhere}"/.pyenv/versions/*/bin/python3
    } 2>/dev/null | while read -r path; do
        "$path" -c '
import ensurepip, ssl, sys, venv
if sys.version_info >= (3, 8) and sys.version_info.releaselevel == "final":
    print("%d.%02d %s" % (sys.version_info[0], sys.version_info[1], sys.executable))' </dev/null 2>/dev/null
    done | LC_ALL=C sort -s -u -k1,1
}

# default_python: python3 if it will do, else the newest Python that does.
default_python() {
    version=$(python3 -c 'import sys; print("%d.%02d" % sys.version_info[:2])' 2>/dev/null)
    found=$(pythons)
    line=$(printf '%s\n' "$found" | grep "^${version:-none} " || printf '%s\n' "$found" | tail -n 1)
    if [ -z "$line" ]; then
        say "There is no Python 3.8 or newer here that can make virtual environments."
        say "(On Debian and Ubuntu that takes the package python3-venv.)"
        return 1
    fi
    printf '%s\n' "${line#* }"
}

# requirements PYTHON SECTION...: what setup.cfg asks for; "install" is what the package itself needs.
requirements() {
    "$1" - "$@" <<'PYTHON'
import configparser, sys
setup = configparser.ConfigParser()
setup.read("setup.cfg")
for name in sys.argv[2:]:
    text = setup["options"]["install_requires"] if name == "install" else setup["options.extras_require"][name]
    print("\n".join(line.strip() for line in text.strip().splitlines()))
PYTHON
}

# environment NAME PYTHON: make .venvs/NAME-VERSION with the requirements on standard input, unless it is there
# already, and print the path of its Python.
environment() {
    version=$("$2" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    folder=$PWD/.venvs/$1-$version
    wanted=$(cat)
    if [ "$(cat "$folder/made-for" 2>/dev/null)" != "$wanted" ]; then
        say "Making the virtual environment .venvs/$1-$version ..."
        rm -rf "$folder"
        mkdir -p .venvs
        printf '%s\n' "$wanted" >"$folder.txt"
        "$2" -m venv "$folder" >&2 || return 1
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$folder.txt" >&2 || return 1
        mv "$folder.txt" "$folder/made-for"
    fi
    printf '%s\n' "$folder/bin/python"
}
