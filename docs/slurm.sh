#!/bin/bash
#SBATCH --job-name=aime-fast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Trains on two nodes with eight GPUs each. Set up .venv first, then submit from the checkout: sbatch docs/slurm.sh
# Two minutes before the time limit every process gets SIGTERM, saves a checkpoint and exits. The job then goes back into
# the queue and resumes.
set -u
RUN=runs/slurm-$SLURM_JOB_ID
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
GPUS=8
mkdir -p runs

# torchrun passes the signal on and then exits with 1. The run's log therefore decides whether to requeue the job.
srun --kill-on-bad-exit=1 bash -c "exec .venv/bin/torchrun --nnodes $SLURM_NNODES --nproc_per_node $GPUS \
    --node_rank \$SLURM_NODEID --master_addr $MASTER --master_port 29500 \
    aime_fast/train.py --ds_config zero2 --out $RUN --resume auto --epochs 100" 2>&1 | tee -a "$RUN.log"

if tail -n 200 "$RUN.log" | grep -q "stopped by signal"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
