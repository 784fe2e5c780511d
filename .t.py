import sys,time,shutil
from pathlib import Path
from tests.layouts import synthetic
t=time.perf_counter()
sizes={**synthetic.REAL_SIZES,"vocab_size":2816,"num_hidden_layers":int(sys.argv[2])}
d=Path("/tmp/load19s"); shutil.rmtree(d,ignore_errors=True)
synthetic.write(d,sys.argv[1],shard_bytes=1_900_000_000,**sizes); print("write",time.perf_counter()-t)
