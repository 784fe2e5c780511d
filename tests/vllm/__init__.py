"""A real vLLM, which nobody here has written, serves the embedded checkpoint: what it answers to our client.

    python -m tests.vllm VENV

makes one that needs no GPU in VENV, if there is none yet (600 MB of downloads, 3 GB on the disk), starts it, runs
`test_vllm.py` against it and stops it: some four minutes on two cores. It is no part of the suite. A vLLM that is
running anywhere is tested with

    LLM_DIFFUSIONGEMMA_TEST_SERVER=http://host:8000/v1 pytest -m vllm

if it serves the folder that `python -m tests.vllm --checkpoint FOLDER` writes, with the options of `serving.py`.
"""
