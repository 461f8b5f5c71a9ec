#!/usr/bin/env bash
# Measures what is worth measuring on one GPU in ten minutes, and writes a page with today's date beside this file.
#
#   docs/measurements/run.sh [--device cuda|cpu] [--quick] [--dry-run] [--out FILE]
#
# --quick is two minutes on a laptop: few steps of few recipes. --dry-run writes the page without running anything.
# Each part has a time limit; one that fails or is too slow is named on the page, with what it had printed, and the others
# go on. The exit code is 1 then. The real CIFAR-100 is only needed for the plain loop: CIFARSCALE_REAL_DATA names its folder.
# PYTHON names the interpreter; by default that of .venv.
set -uo pipefail
cd "$(dirname "$0")/../.."

device=cuda quick='' dry='' out=''
while (($#)); do
    case $1 in
    --device) device=${2:?--device needs cuda or cpu} && shift ;;
    --quick) quick=1 ;;
    --dry-run) dry=1 ;;
    --out) out=${2:?--out needs a file} && shift ;;
    *) echo "run.sh: unknown option $1; valid are --device, --quick, --dry-run and --out" >&2 && exit 2 ;;
    esac
    shift
done
[[ $device == cuda || $device == cpu ]] || { echo "run.sh: --device $device is neither cuda nor cpu" >&2; exit 2; }
python=${PYTHON:-.venv/bin/python}
[[ -x $(command -v "$python") ]] || { echo "run.sh: there is no $python. Run: make install, or set PYTHON" >&2; exit 2; }
date=$(date +%F)
out=${out:-docs/measurements/$date-$device.md}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=()

# part TITLE SECONDS text|table COMMAND …: a section of the page with what the command prints.
part() {
    local title=$1 seconds=$2 kind=$3 began=$SECONDS code=0 printed
    shift 3
    printed=$(mktemp)
    printf '\n## %s\n\n`%s`, at most %s s\n\n' "$title" "${*/#$python/python}" "$seconds" >> "$out"
    [[ $dry ]] && return
    echo "$title …" >&2
    timeout --kill-after=10 "$seconds" "$@" > "$printed" 2> "$printed.err" || code=$?
    [[ $kind == text ]] && echo '```' >> "$out"
    if [[ $kind == text ]]; then tail -n 40 "$printed" >> "$out"; else cat "$printed" >> "$out"; fi
    [[ $kind == text ]] && echo '```' >> "$out"
    case $code in
    0) printf '\nTook %s s.\n' $((SECONDS - began)) >> "$out" ;;
    124 | 137) printf '\n**Stopped** after its %s s.\n' "$seconds" >> "$out" ;;
    *) printf '\n**Failed** with exit code %s: `%s`\n' $code "$(grep -v '^$' "$printed.err" | tail -n 1)" >> "$out" ;;
    esac
    ((code)) && failed+=("$title")
    rm -f "$printed" "$printed.err"
}

printf '# Measured on %s, with --device %s%s\n\n' "$date" "$device" "${quick:+, quickly}" > "$out"
echo 'Written by `docs/measurements/run.sh`. **One run of each figure**, so there is no spread.' >> "$out"

workers=(-n 8)
[[ $device == cpu ]] && workers=()
part 'Hardware and versions' 20 text "$python" tests/bench/hardware.py --device "$device"
part 'Tests' 150 text "$python" -m pytest -q -p no:cacheprovider --tb=line -rfE "${workers[@]}" tests/gpu

if [[ $quick ]]; then
    some=(--steps 20 --recipe cnn:64) fid=(--num-images 8 --rounds 1 --command-rounds 0) resume=(--steps 8 cnn) loop=(--seconds 0.3)
else
    some=(--steps 100) fid=(--num-images 2048 --rounds 1 --command-rounds 0) resume=(--steps 20) loop=(--seconds 5)
fi
some+=(--precision fp32 --precision bf16)
part 'Resumed' 60 table "$python" tests/bench/bench_resume.py --device "$device" "${resume[@]}"
part 'Throughput of training' 130 table "$python" tests/bench/bench_gpu.py --device "$device" "${some[@]}"
if [[ ${CIFARSCALE_REAL_DATA:-} ]]; then
    part 'Against the plain loop' 70 text "$python" tests/bench/bench_training.py --rounds 1 "${loop[@]}" --device "$device"
else
    printf '\n## Against the plain loop\n\nNot measured: CIFARSCALE_REAL_DATA does not name a folder with cifar-100-python/.\n' >> "$out"
fi
part 'FID, images through the network' 60 text "$python" tests/bench/bench_fid.py "${fid[@]}" --device "$device"
if [[ ! $quick ]]; then
    part 'Compiled' 100 table "$python" tests/bench/bench_gpu.py --device "$device" --steps 100 --compiled-only --precision bf16
fi

if ((${#failed[@]})); then
    { printf '\n## What failed\n\n'; printf -- '- %s\n' "${failed[@]}"; } >> "$out"
fi
echo "$out"
((${#failed[@]} == 0))
