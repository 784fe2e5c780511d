import sys,time
from dataclasses import replace
from pathlib import Path
import torch
from llm_diffusiongemma.catalog import EMBEDDED_CHECKPOINT
from llm_diffusiongemma.diffusion.loading import describe,load_model
from llm_diffusiongemma.diffusion.placement import whole,LayerHome
from tests.whole import load_whole
def kb(n): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(n))
load_whole(EMBEDDED_CHECKPOINT)
before=kb("VmRSS")
t=time.perf_counter(); d=describe(Path(sys.argv[1])); t1=time.perf_counter()
n=len(d.config.network().layers)
p=replace(whole("nvfp4",n,"cpu"),layers=tuple(LayerHome("cpu",sys.argv[2]) for _ in range(n)))
m=load_model(d,p); t2=time.perf_counter()
size=sum(x.nbytes for _,x in m.network.tensors())
print("describe",t1-t,"load",t2-t1,"GB/s",size/1e9/(t2-t1),"placed",size/2**30,"peak above",(kb("VmHWM")-before)/2**20,"rss",(kb("VmRSS")-before)/2**20,d.dtype_on("cpu"),m.weight_bytes/2**30)
