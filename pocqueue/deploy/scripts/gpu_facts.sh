# What the server's GPUs and their driver are. Reads, and writes nothing; takes a second or two.
# Prints parts (facts/parts.py); facts/gpu.py reads them.
export LC_ALL=C
. common/parts.sh

# Its complaints go to either output.
smi() { timeout 60 nvidia-smi "$@" 2>&1; }

query=index,uuid,name,memory.total,memory.free,driver_version,compute_cap,ecc.errors.uncorrected.volatile.total
query=$query,persistence_mode,pcie.link.width.current,pcie.link.width.max,mig.mode.current

packages() {
  command -v dpkg-query > /dev/null || return 0
  dpkg-query -W -f '${db:Status-Status} ${db:Status-Want} ${Package} ${Version}\n' 'nvidia-driver-*' 'nvidia-kernel-*' 'libnvidia-compute-*' \
    'nvidia-fabricmanager*' 2> /dev/null | sed -n 's/^installed //p'
}

part gpus smi --query-gpu="$query" --format=csv,noheader,nounits
part rows smi --query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure --format=csv,noheader
part apps smi --query-compute-apps=gpu_uuid,pid,used_memory,process_name --format=csv,noheader,nounits
part module sh -c '[ ! -r /proc/driver/nvidia/version ] || cat /proc/driver/nvidia/version'
part packages packages
part xid sh -c 'dmesg 2> /dev/null | grep "NVRM: Xid" | tail -n 20 || true'
part switches sh -c 'ls /proc/driver/nvidia-nvswitch/devices 2> /dev/null | wc -l'
part fabric sh -c 'nv-fabricmanager --version 2> /dev/null; systemctl is-active nvidia-fabricmanager 2> /dev/null || true'
part secure_boot sh -c 'mokutil --sb-state 2> /dev/null || true'
part upgrades sh -c 'cat /etc/apt/apt.conf.d/20auto-upgrades 2> /dev/null || true'
