"""The registries of every kind, with the names that VELM itself provides."""

from __future__ import annotations

from velm.registry.registry import Registry

image_encoders = Registry(
    "image encoder",
    "velm.image_encoders",
    {
        "cnn": "velm.encoders.cnn:CNNEncoder",
        "vit": "velm.encoders.vit:ViTEncoder",
        "attentional": "velm.encoders.attentional:AttentionalEncoder",
        "torchvision/*": "velm.encoders.torchvision:TorchvisionEncoder",
        "timm/*": "velm.encoders.timm:TimmEncoder",
        "hf/*": "velm.encoders.huggingface:HFImageEncoder",
    },
    example="my_pkg.my_module:MyEncoder",
)
text_encoders = Registry(
    "text encoder",
    "velm.text_encoders",
    {
        "decoder": "velm.encoders.decoder:DecoderTextEncoder",
        "rnn": "velm.encoders.rnn:RNNEncoder",
        "transformer": "velm.encoders.transformer:TransformerEncoder",
        "hf/*": "velm.encoders.huggingface:HFTextEncoder",
    },
    example="my_pkg.my_module:MyEncoder",
)
decoders = Registry(
    "decoder",
    "velm.decoders",
    {
        "rnn": "velm.decoders.rnn:RNNDecoder",
        "transformer": "velm.decoders.transformer:TransformerDecoder",
        "git": "velm.decoders.git:GitDecoder",
        "hf/*": "velm.decoders.huggingface:HFDecoder",
        "llm/*": "velm.decoders.llm:LLMDecoder",
    },
    example="my_pkg.my_module:MyDecoder",
)
losses = Registry(
    "loss",
    "velm.losses",
    {
        "contrastive": "velm.losses.alignment:ContrastiveLoss",
        "sigmoid": "velm.losses.alignment:SigmoidLoss",
        "triplet": "velm.losses.alignment:TripletLoss",
        "captioning": "velm.losses.captioning:CaptioningLoss",
        "scst": "velm.losses.self_critical:SelfCriticalLoss",
        "distillation": "velm.losses.distillation:DistillationLoss",
    },
    example="my_pkg.my_module:MyLoss",
)
datasets = Registry(
    "dataset",
    "velm.datasets",
    {
        "shapes": "velm.data.synthetic.shapes:Shapes",
        "shapes_questions": "velm.data.synthetic.questions:ShapesQuestions",
        "shapes_stories": "velm.data.synthetic.stories:ShapesStories",
        "csv": "velm.data.formats.delimited:CSV",
        "tsv": "velm.data.formats.delimited:TSV",
        "jsonl": "velm.data.formats.jsonl:JSONL",
        "parquet": "velm.data.formats.parquet:Parquet",
        "json": "velm.data.formats.jsonl:JSONL",
        "coco": "velm.data.formats.coco:COCO",
        "flickr8k": "velm.data.formats.flickr:Flickr",
        "flickr30k": "velm.data.formats.flickr:Flickr",
        "llava": "velm.data.formats.llava:LLaVA",
        "chinese_clip": "velm.data.formats.chinese_clip:ChineseCLIP",
        "karpathy": "velm.data.formats.karpathy:Karpathy",
        "folder": "velm.data.formats.folder:Folder",
        "image_folder": "velm.data.formats.image_folder:ImageFolder",
        "webdataset": "velm.data.formats.webdataset:WebDataset",
        "hf/*": "velm.data.formats.huggingface:HFDataset",
        "mixture": "velm.data.formats.mixture:Mixture",
    },
    contract="velm.data.base:Dataset",
    example="my_pkg.my_module:MyDataset",
)
tokenizers = Registry(
    "tokenizer",
    "velm.tokenizers",
    {
        "word": "velm.data.text.word:WordTokenizer",
        "bpe": "velm.data.text.bpe:BPETokenizer",
        "byte": "velm.data.text.bpe:ByteTokenizer",
        "clip": "velm.data.text.clip:CLIPTokenizer",
        "hf/*": "velm.data.text.hf:HFTokenizer",
    },
    contract="velm.data.text.base:Tokenizer",
    example="my_pkg.my_module:MyTokenizer",
)
balancing_policies = Registry(
    "balancing policy",
    "velm.balancing_policies",
    {
        "fixed": "velm.training.balancing.policies:Fixed",
        "uncertainty": "velm.training.balancing.policies:Uncertainty",
        "projection": "velm.training.balancing.policies:Projection",
    },
    example="my_pkg.my_module:MyPolicy",
)
KINDS: dict[str, Registry] = {
    "image_encoders": image_encoders,
    "text_encoders": text_encoders,
    "decoders": decoders,
    "losses": losses,
    "datasets": datasets,
    "tokenizers": tokenizers,
    "balancing_policies": balancing_policies,
}
"""Every registry by the plural of its kind, in the order of listings."""
