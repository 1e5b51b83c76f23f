#!/usr/bin/env bash
# Train on several GPUs: tools/dist_train.sh CONFIG GPUS [train.py flags]; NNODES, NODE_RANK, MASTER_ADDR, PORT for more machines.
set -euo pipefail
config=$1 gpus=$2
exec python -m torch.distributed.run --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" --nproc_per_node "$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
