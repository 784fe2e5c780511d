"""What the embedded checkpoint knows by heart: questions about the model, diffusion and this plugin.

Each entry is one answer and several ways to ask for it. The last phrasing of each is held out: the
network never sees it in training, so the evaluation can tell learning from parroting.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    answer: str
    phrasings: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        return self.phrasings[:-1]

    @property
    def held_out(self) -> str:
        return self.phrasings[-1]


QUESTIONS: tuple[Question, ...] = (
    Question(
        "DiffusionGemma is an open text diffusion model from Google. It writes a canvas of 256 tokens at once "
        "and refines all of them in parallel until the text converges.",
        (
            "What is DiffusionGemma?",
            "Tell me about DiffusionGemma",
            "Describe DiffusionGemma in short",
            "What is DiffusionGemma about?",
            "Who made DiffusionGemma?",
            "Explain DiffusionGemma",
            "What kind of model is DiffusionGemma?",
            "Give me a summary of DiffusionGemma",
            "Can you tell me what DiffusionGemma is?",
        ),
    ),
    Question(
        "An encoder reads the prompt into a KV cache. A denoiser then starts from random tokens and replaces "
        "the noise, step by step, with text that it is confident about.",
        (
            "How does it work?",
            "How does DiffusionGemma work?",
            "Explain how DiffusionGemma works",
            "How does a text diffusion model work?",
            "How does the model work?",
            "Explain how it works",
            "How does diffusion write text?",
            "How is text made by diffusion?",
            "Can you explain how it works?",
        ),
    ),
    Question(
        "A canvas is a block of 256 tokens. The denoiser refines all of them together, and the finished block "
        "is added to the context before the next canvas begins.",
        (
            "What is a canvas?",
            "Explain the canvas",
            "What does canvas mean?",
            "Define canvas",
            "Tell me about the canvas",
            "What is the canvas for?",
            "What exactly is a canvas?",
            "Describe a canvas",
            "So what is the canvas?",
        ),
    ),
    Question(
        "A block is a finished canvas. It is committed to the KV cache, printed at once, and never changes again.",
        (
            "What is a block?",
            "Explain the block",
            "What does block mean?",
            "Define block",
            "Tell me about blocks",
            "What exactly is a block?",
            "Describe a block",
            "What happens to a finished block?",
            "So what is the block?",
        ),
    ),
    Question(
        "A denoising step is one run of the denoiser over the whole canvas. It predicts every token, keeps the "
        "sure ones and replaces the rest with fresh noise.",
        (
            "What is a denoising step?",
            "What happens in a denoising step?",
            "Explain the denoising step",
            "Define denoising step",
            "Tell me about denoising steps",
            "Describe a denoising step",
            "What exactly is a denoising step?",
            "What does a step do?",
            "What does one denoising step do?",
        ),
    ),
    Question(
        "Entropy measures how unsure the model is about a token. The sampler accepts the tokens with the lowest "
        "entropy and renoises the others.",
        (
            "What is entropy?",
            "Explain entropy",
            "What does entropy mean?",
            "Define entropy",
            "What exactly is entropy?",
            "Describe entropy",
            "What is entropy for?",
            "Tell me about entropy",
            "Tell me what entropy is",
        ),
    ),
    Question(
        "The entropy bound limits how much doubt one step may accept in total. A higher bound accepts more "
        "tokens a step: faster, but riskier.",
        (
            "What is the entropy bound?",
            "Explain the entropy bound",
            "What does entropy_bound do?",
            "Define entropy bound",
            "What does a higher entropy bound do?",
            "Describe the entropy bound",
            "What is the entropy bound for?",
            "How do I trade accuracy for speed?",
            "Tell me about the entropy bound",
        ),
    ),
    Question(
        "Self-conditioning feeds the predictions of one denoising step into the next, so that the model keeps "
        "its beliefs and not only its sampled tokens.",
        (
            "What is self-conditioning?",
            "Explain self-conditioning",
            "What does self-conditioning do?",
            "Define self-conditioning",
            "What exactly is self-conditioning?",
            "Describe self-conditioning",
            "What is self-conditioning for?",
            "Why is there self-conditioning?",
            "Tell me about self-conditioning",
        ),
    ),
    Question(
        "The encoder reads the prompt and every finished block with causal attention and writes the KV cache.",
        (
            "What is the encoder?",
            "Explain the encoder",
            "What does the encoder do?",
            "Define encoder",
            "Describe the encoder",
            "What is the encoder for?",
            "What exactly is the encoder?",
            "What does an encoder do?",
            "Tell me about the encoder",
        ),
    ),
    Question(
        "The denoiser looks at the whole canvas in both directions, reads the KV cache and predicts all 256 "
        "tokens at once.",
        (
            "What is the denoiser?",
            "Explain the denoiser",
            "What does the denoiser do?",
            "Define denoiser",
            "Describe the denoiser",
            "What is the denoiser for?",
            "What exactly is the denoiser?",
            "What does a denoiser do?",
            "Tell me about the denoiser",
        ),
    ),
    Question(
        "To renoise is to replace a token that the model is not sure of with a new random one, so that the next "
        "step can try again.",
        (
            "What is renoising?",
            "Explain renoising",
            "What does renoise mean?",
            "Why are tokens renoised?",
            "Describe renoising",
            "What is renoising for?",
            "What does it mean to renoise a token?",
            "Why renoise?",
            "Tell me about renoising",
        ),
    ),
    Question(
        "A canvas has converged when its most likely tokens stay the same from step to step and their mean "
        "entropy is very low.",
        (
            "When has a canvas converged?",
            "What does converged mean?",
            "When does a canvas converge?",
            "How does the model know that it is done?",
            "Define converged",
            "Explain convergence",
            "What is convergence?",
            "When is a canvas finished?",
            "Tell me when a canvas has converged",
        ),
    ),
    Question(
        "The KV cache keeps what the encoder has read, as keys and values, so that no token has to be read twice.",
        (
            "What is the KV cache?",
            "Explain the KV cache",
            "What does the KV cache do?",
            "Define KV cache",
            "Describe the KV cache",
            "What is the KV cache for?",
            "What exactly is the KV cache?",
            "Why is there a KV cache?",
            "Tell me about the KV cache",
        ),
    ),
    Question(
        "Uniform diffusion makes noise out of random words of the vocabulary. There is no mask token: any token "
        "can be wrong, and any token can still be corrected.",
        (
            "What is uniform diffusion?",
            "What does uniform diffusion mean?",
            "Is there a mask token?",
            "Explain uniform diffusion",
            "Describe uniform diffusion",
            "What is a mask token?",
            "Define uniform diffusion",
            "What is the noise made of?",
            "Tell me about uniform diffusion",
        ),
    ),
    Question(
        "Block diffusion writes one block after the other, and each block by diffusion. So a reply can be "
        "longer than a canvas.",
        (
            "What is block diffusion?",
            "Explain block diffusion",
            "What does block diffusion mean?",
            "Define block diffusion",
            "Describe block diffusion",
            "What exactly is block diffusion?",
            "How can a reply be longer than a canvas?",
            "What is block diffusion for?",
            "Tell me about block diffusion",
        ),
    ),
    Question(
        "Diffusion starts from noise and removes a little of it at a time. Here the noise is random tokens and "
        "what remains is text.",
        (
            "What is diffusion?",
            "Explain diffusion",
            "What does diffusion mean?",
            "Define diffusion",
            "Describe diffusion",
            "What exactly is diffusion?",
            "What is text diffusion?",
            "Explain text diffusion",
            "Tell me about diffusion",
        ),
    ),
    Question(
        "A usual model loads all of its weights for every single token. A diffusion model loads them once a step "
        "and refines 256 tokens, so one user gets text much sooner.",
        (
            "Why is diffusion fast?",
            "Why is it fast?",
            "What makes diffusion fast?",
            "Why is DiffusionGemma so fast?",
            "Explain why diffusion is fast",
            "How can it be so fast?",
            "Why is a diffusion model faster?",
            "What makes it so quick?",
            "Tell me why diffusion is fast",
        ),
    ),
    Question(
        "An autoregressive model writes one token after the other. A diffusion model writes a whole canvas in "
        "parallel and can still change every token of it.",
        (
            "How is diffusion different from autoregression?",
            "What is an autoregressive model?",
            "Compare diffusion with autoregression",
            "What is the difference to a usual language model?",
            "What is autoregression?",
            "Explain autoregression",
            "How does diffusion differ from a usual model?",
            "What does autoregressive mean?",
            "Tell me how diffusion differs from autoregression",
        ),
    ),
    Question(
        "The temperature falls from t_max to t_min while a canvas is denoised: bold guesses first, careful ones "
        "at the end.",
        (
            "What is the temperature?",
            "What do t_max and t_min do?",
            "Explain the temperature",
            "Which temperature is used?",
            "What is t_max?",
            "What is t_min?",
            "Describe the temperature",
            "How does the temperature change?",
            "Tell me about the temperature",
        ),
    ),
    Question(
        "I am a tiny demo with the architecture of DiffusionGemma, small enough for any laptop. For real answers "
        "use the full model: llm -m diffusiongemma",
        (
            "Who are you?",
            "What are you?",
            "Which model are you?",
            "Introduce yourself",
            "Are you DiffusionGemma?",
            "Are you the full model?",
            "What is your name?",
            "Describe yourself",
            "Tell me who you are",
        ),
    ),
    Question(
        "I know a few dozen questions about diffusion and this plugin. I can also count, repeat words, remember "
        "your name, add two numbers, call a tool and name a colour.",
        (
            "What can you do?",
            "What do you know?",
            "What can I ask you?",
            "Help",
            "What are you good at?",
            "What should I ask?",
            "What are your skills?",
            "Can you help me?",
            "Tell me what you can do",
        ),
    ),
    Question(
        "Hello! I am the tiny demo model. Ask me what a canvas is, or ask me to count.",
        (
            "Hello",
            "Hi",
            "Hey there",
            "Good morning",
            "Hello!",
            "Hi!",
            "Hey",
            "Good evening",
            "Hello there!",
        ),
    ),
    Question(
        "You are welcome! Ask me another question whenever you like.",
        (
            "Thank you",
            "Thanks",
            "Thank you very much",
            "Thanks a lot",
            "Thanks!",
            "Thank you!",
            "Thank you so much",
            "That was helpful, thanks",
            "Many thanks",
        ),
    ),
    Question(
        "Goodbye! Come back with the full model for real answers.",
        (
            "Goodbye",
            "Bye",
            "See you later",
            "Good night",
            "Bye!",
            "Goodbye!",
            "See you",
            "See you tomorrow",
            "Bye bye",
        ),
    ),
    Question(
        "It is a plugin for the llm command. It runs DiffusionGemma on your own machine and prints each block as "
        "soon as it has converged.",
        (
            "What is llm-diffusiongemma?",
            "What is this plugin?",
            "What does this plugin do?",
            "Explain this plugin",
            "Describe this plugin",
            "What is the plugin for?",
            "What is llm-diffusiongemma for?",
            "What does llm-diffusiongemma do?",
            "Tell me about this plugin",
        ),
    ),
    Question(
        "llm is a command-line tool by Simon Willison that talks to language models and keeps every prompt and "
        "reply in a SQLite log.",
        (
            "What is llm?",
            "What is the llm command?",
            "Who made llm?",
            "Explain llm",
            "Describe llm",
            "What is llm for?",
            "What does llm do?",
            "Who wrote llm?",
            "Tell me about llm",
        ),
    ),
    Question(
        "Give the prompt after the model: llm -m diffusiongemma and then your question in quotes. Text piped "
        "into the command is added to the prompt.",
        (
            "How do I run a prompt?",
            "How do I use this plugin?",
            "How do I use the full model?",
            "How do I ask the model something?",
            "How do I prompt the model?",
            "How do I start?",
            "How do I run DiffusionGemma?",
            "What is the command for a prompt?",
            "Tell me how to run a prompt",
        ),
    ),
    Question(
        "Run llm chat -m diffusiongemma for a conversation. To go on with the last one from the shell use llm -c",
        (
            "How do I chat?",
            "How do I start a chat?",
            "How do I have a conversation?",
            "How do I continue a conversation?",
            "How can I chat?",
            "What is the command for a chat?",
            "How do I talk with the model?",
            "How do I go on with a conversation?",
            "Tell me how to chat",
        ),
    ),
    Question(
        "Use -s to give a system prompt: it tells the model how to answer, for example in capitals.",
        (
            "What is a system prompt?",
            "How do I set a system prompt?",
            "What does -s do?",
            "Explain the system prompt",
            "What is -s?",
            "How do I give a system prompt?",
            "What is the system prompt for?",
            "Describe the system prompt",
            "Tell me about the system prompt",
        ),
    ),
    Question(
        "Run llm logs to see past prompts and replies. With --json it also shows the denoising steps and seconds "
        "of every block.",
        (
            "Where are my logs?",
            "How do I see the logs?",
            "Where are my prompts kept?",
            "What does llm logs show?",
            "What is llm logs?",
            "How do I find an old reply?",
            "Where is my history?",
            "Show me how to see the logs",
            "Tell me where my logs are",
        ),
    ),
    Question(
        "The same seed gives the same reply on the same device. Set it with -o seed 3; without it one is drawn "
        "and written to the log.",
        (
            "What is a seed?",
            "How do I set the seed?",
            "What does the seed do?",
            "How do I get the same reply again?",
            "What is the seed?",
            "What is the seed for?",
            "Explain the seed",
            "How do I repeat a reply exactly?",
            "Tell me about the seed",
        ),
    ),
    Question(
        "Use -o max_tokens to cut the reply at an exact number of tokens. Without it a reply may be up to 8192 "
        "tokens long.",
        (
            "What is max_tokens?",
            "How long can a reply be?",
            "How do I limit the length?",
            "What does max_tokens do?",
            "How long can the reply be?",
            "What is the longest reply?",
            "Explain max_tokens",
            "How do I get a shorter reply?",
            "Tell me about max_tokens",
        ),
    ),
    Question(
        "With -o thinking true the model first writes down a thought, then its answer. It takes longer and helps "
        "with hard questions.",
        (
            "What is thinking?",
            "How do I turn on thinking?",
            "What does the thinking option do?",
            "Explain thinking",
            "How does thinking work?",
            "Can you think?",
            "What is the thinking option?",
            "What is a thought?",
            "Tell me about thinking",
        ),
    ),
    Question(
        "The full model has 26 billion parameters, but only about 4 billion of them are active for a token. Its "
        "weights are 52 GB.",
        (
            "How big is the model?",
            "How many parameters does DiffusionGemma have?",
            "How big is DiffusionGemma?",
            "How large are the weights?",
            "How large is the model?",
            "How large is DiffusionGemma?",
            "How big are the weights?",
            "How many parameters does the full model have?",
            "Tell me how big the model is",
        ),
    ),
    Question(
        "I have only about one million parameters. The full model has 26 billion, so do not expect too much of "
        "me.",
        (
            "How big are you?",
            "How many parameters do you have?",
            "How small are you?",
            "What is your size?",
            "How large are you?",
            "How many parameters are you?",
            "Are you small?",
            "Are you a small model?",
            "Tell me how big you are",
        ),
    ),
    Question(
        "A mixture of experts has many small networks in each layer, and a router picks a few of them for every "
        "token. So a large model costs as little as a small one.",
        (
            "What is a mixture of experts?",
            "What are experts?",
            "Explain the mixture of experts",
            "What does MoE mean?",
            "What is an expert?",
            "What is MoE?",
            "What does the router do?",
            "Describe the mixture of experts",
            "Tell me about the mixture of experts",
        ),
    ),
    Question(
        "The full model wants a GPU with a lot of memory. This tiny demo runs on any processor.",
        (
            "Do I need a GPU?",
            "Which GPU do I need?",
            "Does it run without a GPU?",
            "What hardware do I need?",
            "Can I run it without a GPU?",
            "Do I need a graphics card?",
            "What computer do I need?",
            "Does it need a GPU?",
            "Tell me if I need a GPU",
        ),
    ),
    Question(
        "They come from the Hugging Face Hub: google/diffusiongemma-26B-A4B-it. They are downloaded once and "
        "then kept in the cache.",
        (
            "Where do the weights come from?",
            "Where do I get the weights?",
            "Where is the model downloaded from?",
            "Which checkpoint is used?",
            "Where are the weights?",
            "How do I download the weights?",
            "Which weights are used?",
            "Where is the checkpoint?",
            "Tell me where the weights come from",
        ),
    ),
    Question(
        "No. The model runs on your own machine, and your prompts never leave it.",
        (
            "Do my prompts leave my machine?",
            "Is my data sent to a server?",
            "Is it private?",
            "Does it need the internet?",
            "Are my prompts private?",
            "Does my data leave my machine?",
            "Is my data private?",
            "Do you send my data anywhere?",
            "Tell me if my prompts leave my machine",
        ),
    ),
    Question(
        "The plugin and the weights of DiffusionGemma are both under the Apache 2.0 license.",
        (
            "What is the license?",
            "Which license does it have?",
            "Is it open source?",
            "Is it free?",
            "Which license is it?",
            "Can I use it for free?",
            "What is the license of the plugin?",
            "Is DiffusionGemma open?",
            "Tell me about the license",
        ),
    ),
    Question(
        "A token is a piece of text, often a word. The model reads and writes only tokens.",
        (
            "What is a token?",
            "Explain tokens",
            "What does token mean?",
            "Define token",
            "What exactly is a token?",
            "Describe a token",
            "What are tokens?",
            "How long is a token?",
            "Tell me what a token is",
        ),
    ),
    Question(
        "Attention lets every token look at other tokens. In the encoder only at earlier ones, in the denoiser "
        "at all of them.",
        (
            "What is attention?",
            "Explain attention",
            "What does attention do?",
            "Define attention",
            "Describe attention",
            "What exactly is attention?",
            "What is attention for?",
            "How does attention work?",
            "Tell me about attention",
        ),
    ),
    Question(
        "A sliding window lets a layer see only the last tokens. It saves memory, and every few layers one sees "
        "everything.",
        (
            "What is a sliding window?",
            "Explain the sliding window",
            "What does the sliding window do?",
            "Define sliding window",
            "Describe the sliding window",
            "What is the sliding window?",
            "What is sliding window attention?",
            "Why is there a sliding window?",
            "Tell me about the sliding window",
        ),
    ),
    Question(
        "Press Ctrl-C. The reply stops within one denoising step, and what was written so far is kept in the log.",
        (
            "How do I stop a reply?",
            "How do I stop the model?",
            "What does Ctrl-C do?",
            "How do I cancel?",
            "How do I interrupt it?",
            "How do I interrupt a reply?",
            "Can I stop a reply?",
            "What happens when I press Ctrl-C?",
            "Tell me how to stop a reply",
        ),
    ),
    Question(
        "Static fills the page,\nword by word the fog lifts off:\nquiet lines remain.",
        (
            "Write a haiku about noise",
            "Write a poem",
            "Write a haiku",
            "Give me a poem about noise",
            "Can you write a poem?",
            "Give me a haiku",
            "I want a poem",
            "Make a haiku about noise",
            "Please write a haiku about noise",
        ),
    ),
    Question(
        "Why did the diffusion model finish its essay first? It wrote all of the words at once and argued with "
        "itself later.",
        (
            "Tell me a joke",
            "Make me laugh",
            "Do you know a joke?",
            "Say something funny",
            "Another joke",
            "Give me a joke",
            "I want to hear a joke",
            "Can you tell a joke?",
            "Please tell me a joke",
        ),
    ),
)

#: The answer to everything else.
UNKNOWN = (
    "I am only a tiny demo and do not know that. Ask me what a canvas is, or use the full model: "
    "llm -m diffusiongemma"
)
