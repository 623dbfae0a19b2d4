#!/bin/bash
#SBATCH --job-name=ray-sassl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=120G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# One pretraining on the nodes of one SLURM job. Activate the environment of ray-sassl in your shell, and submit
#
#   sbatch cluster/slurm/pretrain.sh moco_imagenet_sassl data.path=/shared/imagenet/train --run-dir /shared/runs/first
#
# What follows the experiment goes to `ray-sassl pretrain`; options of sbatch (--nodes=8) stand before the script. The data and the run
# directory are on a file system that all nodes share. Two minutes before the time is up the run writes a checkpoint and exits with 138; the
# job is then queued again and continues the run.
set -euo pipefail

# Jobs of several people may share a node: ports, the folder and the token are the job's own. Ports that are 0 are chosen by the system.
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)
export RAY_AUTH_TOKEN
export RAY_SASSL_HEAD=${RAY_SASSL_HEAD:-$(hostname -I | cut -d' ' -f1)}:$port
export RAY_SASSL_TEMP=${RAY_SASSL_TEMP:-/tmp}/ray-$SLURM_JOB_ID

start_node() {  # on each node, until it is told to end
  local options=(--block --temp-dir="$RAY_SASSL_TEMP" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0 --disable-usage-stats)
  if [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then  # MiB; Ray would take shares of the whole machine's memory
    options+=(--memory=$((SLURM_MEM_PER_NODE * 1048576 * 6 / 10)) --object-store-memory=$((SLURM_MEM_PER_NODE * 1048576 * 3 / 10)))
  fi
  if [ "$SLURM_NODEID" = 0 ]; then
    local client=$((${RAY_SASSL_HEAD##*:} + 1)) dashboard=$((${RAY_SASSL_HEAD##*:} + 2))
    options+=(--head --node-ip-address="${RAY_SASSL_HEAD%:*}" --port="${RAY_SASSL_HEAD##*:}" --ray-client-server-port=$client
      --dashboard-host=127.0.0.1 --dashboard-port=$dashboard)
  else
    until python -c 'import sys; from ray_sassl.orchestrate.runtime.session import check_address; check_address(sys.argv[1])' \
      "$RAY_SASSL_HEAD" 2> /dev/null; do sleep 1; done
    options+=(--address="$RAY_SASSL_HEAD")
  fi
  trap 'kill "$node" 2> /dev/null; wait; rm -rf "$RAY_SASSL_TEMP"' EXIT
  trap 'exit 0' TERM
  ray start "${options[@]}" & node=$!
  if ! wait "$node" && [ "$SECONDS" -lt 300 ]; then  # Ray gives a node half a minute to start, too little on a busy machine
    ray start "${options[@]}" & node=$!
    wait "$node"
  fi
}
export -f start_node

# A node that is lost does not end the others: with scaling.min_workers the run continues without it.
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=0 bash -c start_node &
nodes=$!
trap 'kill "$nodes" && wait "$nodes" || true' EXIT
until python - "$RAY_SASSL_HEAD" "$SLURM_NNODES" 2> /dev/null << 'END'
import sys, ray
ray.init(sys.argv[1], log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
END
do
  kill -0 "$nodes" && [ "$SECONDS" -lt 600 ] || { echo "the nodes of the Ray cluster did not start" >&2; exit 1; }
  sleep 1
done

workers=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-0}))
changes=(fault.grace_s=100)
[ "$workers" = 0 ] || changes+=("scaling.num_workers=$workers")
ray-sassl pretrain "$1" "${changes[@]}" "${@:2}" --address "$RAY_SASSL_HEAD" --resume-if-begun &
command=$!
trap 'kill -USR1 "$command"' USR1  # which ends `wait`
code=0
wait "$command" || code=$?
while kill -0 "$command" 2> /dev/null; do
  code=0
  wait "$command" || code=$?
done
if [ "$code" = 138 ]; then
  kill "$nodes" && wait "$nodes" || true
  trap - EXIT
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
