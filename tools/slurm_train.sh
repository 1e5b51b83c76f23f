#!/usr/bin/env bash
# Train under Slurm: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [train.py flags]
set -euo pipefail
partition=$1 job=$2 config=$3 work_dir=$4
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun --partition "$partition" --job-name "$job" --gres "gpu:${GPUS_PER_NODE:-8}" --ntasks "${GPUS:-8}" \
    --ntasks-per-node "${GPUS_PER_NODE:-8}" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --work-dir "$work_dir" --launcher slurm "${@:5}"
