"""`cold-flower fuse`: what a folder is taken for, and what of the base's goes along."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cold_flower.commands.offline import fuse
from cold_flower.errors import ModelError
from cold_flower.models.folder import Folder
from tests.test_offline import AVERAGE, broken, reconfigured


@pytest.fixture
def copy(folders, tmp_path):
    """Return a function that writes a family's model, the same each time, under a name."""
    classes = {
        "roberta": "RobertaForMaskedLM",
        "bert": "BertModel",
        "t5": "T5ForConditionalGeneration",
        "modernbert": "ModernBertForMaskedLM",
        "deberta-v2": "DebertaV2ForMaskedLM",
    }

    def write(family, name, **changes):
        shutil.copytree(folders(family, classes[family]), tmp_path / name)
        without = [key for key, value in changes.items() if value is ...]
        config = json.loads((tmp_path / name / "config.json").read_text())
        config = {k: v for k, v in {**config, **changes}.items() if k not in without}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return Folder(str(tmp_path / name))

    return write


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("roberta", {"layer_norm_eps": 1e-5}),
        ("roberta", {"pad_token_id": 0}),
        ("roberta", {"pad_token_id": None}),
        ("roberta", {"hidden_act": "relu"}),
        ("roberta", {"is_decoder": True}),
        ("bert", {"layer_norm_eps": 1e-5}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
        ("t5", {"relative_attention_max_distance": 64}),
        ("t5", {"layer_norm_epsilon": 1e-5}),
        ("modernbert", {"local_attention": 8}),
        ("modernbert", {"norm_eps": 1e-6}),
        (
            "modernbert",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 5.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
                }
            },
        ),
        ("modernbert", {"layer_types": ["full_attention"] * 3}),
        ("deberta-v2", {"position_buckets": 8}),
        ("deberta-v2", {"position_buckets": ...}),
        ("deberta-v2", {"pos_att_type": ["p2c"]}),
        ("deberta-v2", {"max_relative_positions": 12}),
        ("deberta-v2", {"norm_rel_ebd": ...}),
    ],
)
@pytest.mark.parametrize("in_base", [False, True])
def test_a_configuration_that_computes_otherwise_is_refused(
    copy, tmp_path, family, changes, in_base
) -> None:
    models = [copy(family, "a", **changes), copy(family, "b")]
    base, model = models if in_base else models[::-1]
    with pytest.raises(ModelError, match=f"model .*{model.path.name} has {next(iter(changes))} = "):
        fuse(AVERAGE, base, [model], tmp_path / "out", "")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("roberta", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3}),
        ("roberta", {"id2label": {"0": "x"}, "label2id": {"x": 0}, "problem_type": "regression"}),
        ("roberta", {"transformers_version": "4.8.2", "torch_dtype": "float16", "dtype": ...}),
        ("roberta", {"layer_norm_eps": ..., "hidden_act": ..., "tie_word_embeddings": ...}),
        ("roberta", {"position_embedding_type": "absolute", "gradient_checkpointing": True}),
        ("roberta", {"_name_or_path": "x", "finetuning_task": "y", "my_note": 3}),
        ("roberta", {"bos_token_id": 5, "use_cache": False, "initializer_range": 1.0}),
        ("bert", {"directionality": "bidi", "pooler_fc_size": 768, "architectures": ["X"]}),
        ("t5", {"n_positions": 512, "task_specific_params": {"a": 1}, "is_gated_act": ...}),
        ("t5", {"scale_decoder_outputs": ..., "tie_word_embeddings": ...}),
        (
            "modernbert",
            {"rope_parameters": ..., "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        ),
        (
            "modernbert",
            {"layer_types": ..., "global_attn_every_n_layers": 2, "reference_compile": True},
        ),
        ("deberta-v2", {"conv_kernel_size": 0, "share_att_key": True, "pooler_dropout": 0.5}),
    ],
)
def test_what_does_not_matter_is_not_refused(copy, tmp_path, family, changes) -> None:
    fuse(AVERAGE, copy(family, "a"), [copy(family, "b", **changes)], tmp_path / "out", "")
    fuse(AVERAGE, Folder(str(tmp_path / "b")), [Folder(str(tmp_path / "a"))], tmp_path / "o", "")


def test_t5_1_1_is_one_architecture_in_old_and_new_files(copy, tmp_path) -> None:
    old = {"tie_word_embeddings": False, "scale_decoder_outputs": ...}
    new = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    fuse(AVERAGE, copy("t5", "a", **old), [copy("t5", "b", **new)], tmp_path / "out", "")
    with pytest.raises(ModelError, match="has scale_decoder_outputs = True, the base .* False"):
        fuse(AVERAGE, Folder(str(tmp_path / "a")), [copy("t5", "c")], tmp_path / "x", "")


def test_the_whole_file_wins_over_an_index_beside_it(copy, tmp_path) -> None:
    """As in transformers: a stale index of shards that are still there."""
    base, model = copy("roberta", "base"), copy("roberta", "m")
    tensors = load_file(model.path / "model.safetensors")
    stale = {key: torch.full_like(tensor, 7.0) for key, tensor in tensors.items()}
    save_file(stale, model.path / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (model.path / "model.safetensors.index.json").write_text(json.dumps(index))
    fuse(AVERAGE, base, [Folder(model.name)], tmp_path / "out", "")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.allclose(found[key], base[key]) for key in base)


def test_weights_that_the_configuration_names_are_fused(copy, tmp_path) -> None:
    base, model = copy("roberta", "base"), copy("roberta", "m")
    for folder in (base, model):
        tensors = {key: folder[key] + 1 for key in folder}
        save_file(tensors, folder.path / "other.safetensors", {"format": "pt"})
        reconfigured(folder.path, transformers_weights="other.safetensors")
    fuse(AVERAGE, Folder(base.name), [Folder(model.name)], tmp_path / "out", "")
    loaded = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.allclose(loaded[key], base[key] + 1) for key in base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_shards_becomes_one_file(copy, tmp_path, dtype) -> None:
    whole = copy("roberta", "whole")
    model = transformers.RobertaForMaskedLM.from_pretrained(whole.path, dtype=dtype)
    shutil.copytree(whole.path, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    broken(whole.path, lambda ts: [t.add_(0.5) for k, t in ts.items() if k.startswith("roberta.")])
    base = Folder(str(tmp_path / "base"))
    fuse(AVERAGE, base, [Folder(whole.name)], tmp_path / "out", "")
    assert len(list(base.path.glob("*.safetensors"))) > 1
    assert not list((tmp_path / "out").glob("*.index.json"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    key = "roberta.encoder.layer.1.output.dense.weight"
    assert torch.allclose(found[key].float(), base[key].float() + 0.5, atol=4e-3)
    transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("bare_base", [True, False])
def test_bare_and_prefixed_models_fit(folders, tmp_path, bare_base) -> None:
    bare, prefixed = folders("bert", "BertModel"), folders("bert", "BertForSequenceClassification")
    base, model = (bare, prefixed) if bare_base else (prefixed, bare)
    assert fuse(AVERAGE, Folder(str(base)), [Folder(str(model))], tmp_path / "out", "") == []
    ours, theirs, found = (Folder(str(f)) for f in (base, model, tmp_path / "out"))
    for key, stored in found.body.items():
        assert torch.allclose(found[stored], theirs[theirs.body[key]], atol=1e-6)
    assert set(found) == set(ours)


def test_deberta_without_absolute_positions_reads_none(copy, tmp_path) -> None:
    model = copy("deberta-v2", "m")
    positions = {"deberta.embeddings.position_embeddings.weight": torch.ones(40, 16)}
    broken(model.path, lambda tensors: tensors.update(positions))
    fuse(AVERAGE, copy("deberta-v2", "base"), [Folder(model.name)], tmp_path / "out", "")


def lora_folder(folder):
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def lora_beside(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def lora_inside(folder):
    old = "roberta.encoder.layer.0.attention.self.query"

    def split(tensors):
        tensors[f"{old}.base_layer.weight"] = tensors.pop(f"{old}.weight")
        tensors[f"{old}.lora_A.default.weight"] = torch.zeros(2, 16)

    broken(folder, split)


def bits(folder):
    reconfigured(folder, quantization_config={"load_in_8bit": True})


def int8(folder):
    def quantise(tensors):
        for key in tensors:
            if tensors[key].dim() == 2:
                tensors[key] = tensors[key].to(torch.int8)

    broken(folder, quantise)


def float8(folder):
    key = "roberta.encoder.layer.0.output.dense.weight"
    broken(folder, lambda tensors: tensors.update({key: tensors[key].to(torch.float8_e4m3fn)}))


@pytest.mark.parametrize("where", ["base", "model", "both"])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lora_folder,
            r"LoRA or other PEFT adapter \(it has adapter_config.json\).*merge_and_unload",
        ),
        (
            lora_beside,
            r"LoRA or other PEFT adapter \(it has adapter_config.json\).*merge_and_unload",
        ),
        (lora_inside, r"adapter \(it holds roberta.*(base_layer|lora_A).*merge_and_unload"),
        (bits, "quantised checkpoint; dequantise it"),
        (int8, "torch.int8.*quantised checkpoint; dequantise it"),
        (float8, "F8_E4M3.*quantised checkpoint; dequantise it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_adapters_and_quantised_models_are_named(copy, tmp_path, where, harm, words) -> None:
    folders = {"base": copy("roberta", "base").path, "model": copy("roberta", "model").path}
    for name, path in folders.items():
        if where in (name, "both"):
            harm(path)
    with pytest.raises(ModelError, match=words):
        fuse(
            AVERAGE, Folder(str(folders["base"])), [Folder(str(folders["model"]))],
            tmp_path / "out", "",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_what_makes_the_base_load_goes_along(copy, tmp_path) -> None:
    base = copy("bert", "base").path
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Old"}]
    kept = {
        "modules.json": json.dumps(modules),
        "sentence_bert_config.json": "{}",
        "bpe.codes": "a b",
        "spm.model": "x",
        "source.spm": "x",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "its own",
        "3_Old/config.json": "{}",
        "additional_chat_templates/a.jinja": "x",
    }
    not_kept = [
        "pytorch_model.bin", "optimizer.pt", "training_args.bin", "manifest.json",
        "trainer_state.json", "pytorch_model.bin.index.json", "model.fp16.safetensors",
        "model.safetensors.index.json", "3_Old/pytorch_model.bin", "checkpoint-5/config.json",
        "checkpoint-5/model.safetensors", "checkpoint-5/optimizer.pt", "onnx/config.json",
        "onnx/model.onnx", ".git/config.json", "runs/events.out.tfevents.1",
    ]  # fmt: skip
    for name, text in [*kept.items(), *((name, "{}") for name in not_kept)]:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    (base / "leak.txt").symlink_to(secret)
    (base / "away").symlink_to(tmp_path)
    (base / "near.txt").symlink_to(base / "bpe.codes")
    said = []
    fuse(AVERAGE, Folder(str(base)), [copy("bert", "m")], tmp_path / "out", "", say=said.append)
    out = tmp_path / "out"
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    own = {"README.md", "config.json", "model.safetensors"}
    assert found == kept.keys() | tokenizer | own | {"near.txt"}
    assert all((out / name).read_text() == text for name, text in kept.items())
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert [line.split()[0] for line in said] == ["leak.txt", "3_Old"]


def test_a_snapshot_of_the_hub_is_made_of_links(copy, tmp_path) -> None:
    base = copy("bert", "base").path
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in base.iterdir():
        shutil.move(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    fuse(AVERAGE, Folder(str(snapshot)), [copy("bert", "m")], tmp_path / "out", "")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
