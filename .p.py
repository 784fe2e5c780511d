import cProfile,pstats,time
from pathlib import Path
import torch
from tests.whole import load_whole
torch.set_num_threads(1)
from llm_diffusiongemma.diffusion import loading
from llm_diffusiongemma.diffusion.loading import describe,load_model
from llm_diffusiongemma.diffusion.placement import whole
d=describe(Path("/tmp/load19s"))
n=0
class Stop(Exception): pass
def chk():
    global n
    n+=1
    if n>3000: raise Stop
p=cProfile.Profile(); p.enable()
try: load_model(d,whole("nvfp4",10,"cpu"),chk)
except Stop: pass
p.disable(); pstats.Stats(p).sort_stats("tottime").print_stats(10)
