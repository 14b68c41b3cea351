#!/bin/bash
# Two hosts that are network namespaces of this machine, two processes on each, one of which is killed once: all four
# must print the sums of the undisturbed fit, which comes first. Needs root. `bash benchmarks/two_hosts.sh`
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
cat > "$work/fit.py" <<'PYTHON'
import os, signal, sys
import torch
import bayesuq as bq
from bayesuq.inference.training import loop
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

torch.set_num_threads(1)
checkpoint = sys.argv[1] if len(sys.argv) > 1 else None
usual, is_first_life = loop._Run.loss, os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

def loss(run, number, batch):
    if checkpoint and number == 60 and os.environ["RANK"] == "3" and is_first_life:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(run, number, batch)

loop._Run.loss = loss
model = BayesianNetwork(networks.mlp(64, (32,), 10, seed=0), priors.Normal(), likelihoods.Categorical())
options = {"num_epochs": 20, "batch_size": 32, "learning_rate": 0.01, "seed": 0, "progress": False}
train = bq.datasets.load("digits").train
posterior = bq.inference.variational.fit(model, train, data_parallel=True, checkpoint=checkpoint, **options)
place = f"process {os.environ['RANK']} on host {os.environ['GROUP_RANK']}"
print(f"SUMS {float(posterior.loc.double().sum())} {float(posterior.log_scale.double().sum())} {place}", flush=True)
PYTHON
hosts="bayesuq-0 bayesuq-1"
trap 'for host in $hosts; do ip netns delete $host 2> /dev/null || true; done; rm -rf "$work"' EXIT
for host in $hosts; do ip netns add "$host"; done
ip link add link-0 type veth peer name link-1
for number in 0 1; do
    ip link set "link-$number" netns "bayesuq-$number"
    ip netns exec "bayesuq-$number" ip address add "10.9.0.$((number + 1))/24" dev "link-$number"
    ip netns exec "bayesuq-$number" ip link set "link-$number" up
    ip netns exec "bayesuq-$number" ip link set lo up
done
launch() { # number of the host, whether it is where they meet, name of the run, checkpoint
    ip netns exec "bayesuq-$1" env OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME="link-$1" .venv/bin/torchrun \
        --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint 10.9.0.1:29500 --rdzv-conf "is_host=$2" \
        --local-addr "10.9.0.$(($1 + 1))" --rdzv-id "$3" --max-restarts 3 "$work/fit.py" ${4:-} 2> "$work/$3-$1.txt"
}
for run in undisturbed killed; do
    file=""
    [ $run = killed ] && file="$work/checkpoint"
    echo "$run:"
    launch 0 true $run $file | grep SUMS &
    launch 1 false $run $file | grep SUMS &
    wait
done
