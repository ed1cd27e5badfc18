"""The mistakes that the tests have to catch: each an exact replacement in one source file, and the tests to run on it.

`find` must occur exactly once in the file, where white space does not matter (tests/python/test_mutations.py checks
that at every test run), so whoever changes such a line updates its mutation here.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One mistake. `tests` are CTest programs, `audit` is a case of tests/python/test_audit_program.py, `resume` a test
    of tests/python/test_resume.py."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...] = ()
    audit: str | None = None
    resume: str | None = None

    def mutate(self, text: str) -> str:
        """The file's text with the mistake in it. Raises ValueError unless `find` occurs exactly once."""
        tokens = re.findall(r"\w+|[^\w\s]", self.find)
        found = list(re.finditer(r"\s*".join(map(re.escape, tokens)), text))
        if len(found) != 1:
            raise ValueError(
                f"mutation '{self.name}': its text occurs {len(found)} times in {self.file}, not once: {self.find!r} - "
                "bring tests/mutations/mutations.py up to date with the source"
            )
        return text[: found[0].start()] + self.replace + text[found[0].end() :]


LORA = "src/model/lora.cpp"
ENGINE = "src/model/engine_layer.cpp"
UPDATE = "src/train/client_update.cpp"
TRAINING = "src/train/local_training.cpp"
CORPUS = "src/data/corpus_evaluation.cpp"
KERNELS = "src/tensor/kernels_rows.inc"
ATTENTION = "src/tensor/kernels_attention.inc"
LORA_KERNELS = "src/tensor/kernels_lora.inc"
EVALUATION = "src/train/evaluation.cpp"
CLIENT_WORK = "src/fed/client_work.cpp"
FULL = "src/train/full_training.cpp"

MUTATIONS = [
    # The model
    Mutation(
        "LoRA without its scale s in the forward",
        LORA_KERNELS,
        "scale_into(z_block, static_cast<T>(shape.scale), rows * W, scaled);",
        "scale_into(z_block, T{1}, rows * W, scaled);",
        ("model_test",),
    ),
    Mutation(
        "padded slots that are not 0 and get a gradient",
        LORA,
        "scalar_t* to = staged_CP.data_ptr<scalar_t>() + client * row_size();",
        "scalar_t* to = staged_CP.data_ptr<scalar_t>() + client * row_size();\n"
        "        std::fill_n(to, row_size(), static_cast<scalar_t>(0.01));",
        ("model_test", "train_test"),
    ),
    Mutation(
        "dropout mask of the first client for all",
        LORA,
        "mix64(run.dropout_seed[static_cast<std::size_t>(c)] ^",
        "mix64(run.dropout_seed[static_cast<std::size_t>(c * 0)] ^",
        ("model_test", "train_test"),
    ),
    Mutation(
        "loss normalised over the pack instead of each client",
        "src/model/batch.cpp",
        "batch.row_scale_L = to_tensor(scales, at::kDouble, device).to(options);",
        "std::ranges::fill(scales, 1.0 / static_cast<double>(scales.size()));\n"
        "    batch.row_scale_L = to_tensor(scales, at::kDouble, device).to(options);",
        ("model_test", "train_test"),
    ),
    Mutation(
        "rotary turned forwards in the backward of q",
        ENGINE,
        "ops::rotary(part(d_qkv_NX, 0), config.heads, config.head_size, weights_.rotary, batch.position_N, -1);",
        "ops::rotary(part(d_qkv_NX, 0), config.heads, config.head_size, weights_.rotary, batch.position_N, +1);",
        ("model_test",),
    ),
    Mutation(
        "attention sees later tokens of its block (causal mask)",
        ATTENTION,
        "const int64_t all = seen.of_all(c);",
        "const int64_t all = seen.of_any<T>(c);",
        ("tensor_test", "model_test"),
    ),
    Mutation(
        "attention in bf16 keeps what was in the places of unseen keys",
        "src/tensor/kernels_attention_pairs.inc",
        "inline int64_t operator()(int64_t) const { return end; }",
        "inline int64_t operator()(int64_t) const { return end - end; }",
        ("tensor_test", "model_test"),
    ),
    Mutation(
        "of a frozen matrix with many inputs the last stretch counts alone",
        "src/tensor/kernels_panels.inc",
        ": TileBase<T>{y, shape.y_stride};",
        ": TileBase<T>{addend, shape.addend_stride};",
        ("tensor_test",),
    ),
    # Encoders and classification heads
    Mutation(
        "an encoder's tokens see only those before them",
        ENGINE,
        "attended_NQ, lse_NH, batch.place_N, causal);",
        "attended_NQ, lse_NH, batch.place_N, true);",
        ("class_head_test",),
    ),
    Mutation(
        "an encoder's branch is added to the stream before the norm",
        ENGINE,
        "return wide_ND;",
        "return stream_ND;",
        ("class_head_test",),
    ),
    Mutation(
        "an encoder's residual has no gradient through the norm",
        ENGINE,
        "ops::add(dx_ND, d_normed, d_both_ND);",
        "d_both_ND.copy_(d_normed);",
        ("class_head_test",),
    ),
    Mutation(
        "an encoder's class is read from its last token",
        "src/model/batch.cpp",
        "config.family->encoder ? span.row0 : span.row0 + span.length - 1",
        "span.row0 + span.length - 1",
        ("class_head_test",),
    ),
    Mutation(
        "no gradient through the pooler's tanh",
        "src/model/engine_class_head.cpp",
        "d_pooled_LD * (1.0 - rows.pooled_LD.square())",
        "d_pooled_LD * 1.0",
        ("class_head_test",),
    ),
    Mutation(
        "the head's gradient is that of the pack instead of its client",
        "src/model/engine_class_head.cpp",
        "d_logits_RK.mul_(own(batch.row_scale_L).unsqueeze(1));",
        "d_logits_RK.mul_(1.0 / static_cast<double>(L));",
        ("class_head_test",),
    ),
    # Local training
    Mutation(
        "gradient clipped by the norm of the whole pack",
        UPDATE,
        "std::sqrt(kernels<T>().sum_of_squares(gradient, size));",
        "std::sqrt(kernels<T>().sum_of_squares(adapters.gradient_CP.data_ptr<T>(), adapters.gradient_CP.numel()));",
        ("train_test",),
    ),
    Mutation(
        "optimiser state shared by the clients of a group",
        UPDATE,
        "state.moment1_CP.data_ptr<T>() + client * size;",
        "state.moment1_CP.data_ptr<T>();",
        ("train_test",),
    ),
    Mutation(
        "tail regulariser with the wrong factor's norm",
        UPDATE,
        "a.pull(options.tail_lambda * norm_b / norm_a);",
        "a.pull(options.tail_lambda * norm_a / norm_b);",
        ("train_test",),
    ),
    Mutation(
        "Adam's bias correction stuck at step 1",
        KERNELS,
        "const double correction1 = 1.0 - __builtin_pow(beta1, static_cast<double>(step));",
        "const double correction1 = 1.0 - __builtin_pow(beta1, 1.0);",
        ("tensor_test", "train_test"),
    ),
    Mutation(
        "every round repeats the batches of round 1",
        "src/train/step_data.hpp",
        ".round = options.round,\n                 .n_windows",
        ".round = 1,\n                 .n_windows",
        ("train_test",),
    ),
    Mutation(
        "clients of a group stop with the shortest of them",
        TRAINING,
        "if (tasks[t].n_steps <= step) break;",
        "if (tasks[group.tasks.back()].n_steps <= step) break;",
        ("train_test",),
    ),
    # Data and evaluation
    Mutation(
        "global evaluation on training windows",
        "src/data/corpus_scan.hpp",
        "if (info.part != part || !file_.held_out(info.client)) return;",
        "if (info.part != Part::train) return;",
        ("data_test",),
    ),
    Mutation(
        "a client's own evaluation on its training windows",
        CORPUS,
        "return windows_of(sequences_of(client, part));",
        "return windows_of(sequences_of(client, Part::train));",
        ("data_test",),
    ),
    Mutation(
        "evaluation loses the last window of full batches",
        EVALUATION,
        "if (batches.empty() || rows + windows[index].rows > batch_rows) {\n            batches.emplace_back();",
        "if (batches.empty() || rows + windows[index].rows > batch_rows) {\n"
        "            if (!batches.empty() && batches.back().size() > 1) batches.back().pop_back();\n"
        "            batches.emplace_back();",
        ("train_test",),
    ),
    # The federated round
    Mutation(
        "truncation keeps the last slots instead of the leading ones",
        "src/base/adapter_layout.cpp",
        "std::copy_n(source, kept * width, target);",
        "std::copy_n(source + (from_rank - kept) * width, kept * width, target);",
        ("base_test",),
    ),
    Mutation(
        "uploads added to the last slots instead of the leading ones",
        "src/fed/aggregate.cpp",
        "sums.add(factor, values, first);",
        "const auto lost = static_cast<std::size_t>(options_.rank_max - upload.lora_rank);\n"
        "sums.add(factor, values, first + lost * (values.size() / static_cast<std::size_t>(upload.lora_rank)));",
        ("fed_core_test",),
    ),
    Mutation(
        "weighted sum that is not divided by the weights",
        "src/fed/merge.cpp",
        "const double value = base + sum / divisor.z;",
        "const double value = base + sum + 0.0 * divisor.z;",
        ("fed_core_test",),
    ),
    Mutation(
        "weights not renormalised over a slot's contributors",
        "src/fed/merge.cpp",
        "if (input.strategy.slot_norm == SlotNorm::contributors && !report.has_slot(slot)) continue;",
        "(void)slot;",
        ("fed_core_test",),
    ),
    Mutation(
        "prune decision compares the trained tail with itself",
        "src/fed/prune.cpp",
        "decision.before = tail_norm_product(layout, received, lora_rank, g);",
        "decision.before = tail_norm_product(layout, trained, lora_rank, g);",
        ("fed_core_test",),
    ),
    Mutation(
        "pruning that is forgotten after the round",
        "src/fed/exchange.cpp",
        "lora_ranks[i] = reports[i].dropped ? plan.cohort[i].lora_rank : reports[i].lora_rank_after;",
        "lora_ranks[i] = plan.cohort[i].lora_rank;",
        ("fed_exchange",),
        audit="sgd fp32",
    ),
    # Only the whole program shows these
    Mutation(
        "\"before\" norm taken after training, in the round",
        CLIENT_WORK,
        "decide_prune(layout, received, sent,",
        "decide_prune(layout, sent, sent,",
        audit="sgd fp32",
    ),
    Mutation(
        "regulariser switched off in the round",
        CLIENT_WORK,
        ".tail_lambda = strategy.prunes() ? strategy.prune_lambda : 0.0,",
        ".tail_lambda = 0.0,",
        audit="adamw fp64",
    ),
    Mutation(
        "client weights from what the client received",
        CLIENT_WORK,
        "client_weights(strategy, layout, {.factors = sent, .lora_rank = upload_lora_rank,",
        "client_weights(strategy, layout, {.factors = received, .lora_rank = report.lora_rank_before,",
        audit="adamw fp64",
    ),
    Mutation(
        "pruned lora_ranks forgotten on resume",
        "src/app/resume.cpp",
        "experiment.population->restore_lora_ranks(lora_ranks);",
        "",
        resume="test_resume_needs_no_config_beside_the_folder",
    ),
    Mutation(
        "the checkpoint's round trained once more on resume",
        "src/app/run_experiment.cpp",
        "first_own_round_ = point.round + 1;",
        "first_own_round_ = point.round;",
        resume="test_resume_needs_no_config_beside_the_folder",
    ),
    Mutation(
        "a checkpoint without its checksums verified",
        "src/store/checkpoint.cpp",
        "if (actual != line.substr(0, gap))",
        "if (false)",
        ("store_test",),
    ),
    # Model families
    Mutation(
        "Llama 3's rotary scaling with its middle band the wrong way round",
        "src/model/rotary_rule.cpp",
        "return (T{1} - smooth) * frequency / factor + smooth * frequency;",
        "return smooth * frequency / factor + (T{1} - smooth) * frequency;",
        ("families_test",),
    ),
    Mutation(
        "Qwen 3's norm of the heads with a scale of 1 in the backward",
        "src/model/engine_norms.cpp",
        "ops::rms_norm_backward(dy_ME, raw_ME, weight_E, rstd_M, d_raw_ME);",
        "ops::rms_norm_backward(dy_ME, raw_ME, weight_E, rstd_M.new_ones(rstd_M.sizes()), d_raw_ME);",
        ("families_test",),
    ),
    # Partitions
    Mutation(
        "Dirichlet shares of the first label for all",
        "src/data/partition.cpp",
        "dirichlet_shares(first->label, options)",
        "dirichlet_shares(0, options)",
        ("data_test",),
    ),
    Mutation(
        "one log-normal draw for the sizes of all clients",
        "src/data/partition.cpp",
        "static_cast<int>(quantity_normal), 0, client, 0);",
        "static_cast<int>(quantity_normal), 0, 0, 0);",
        ("data_test",),
    ),
    # Metrics
    Mutation(
        "macro F1 that counts classes nobody has",
        "src/train/label_scores.cpp",
        "if (truths + predictions == 0) continue;\n        ++occurring;",
        "++occurring;\n        if (truths + predictions == 0) continue;",
        ("train_scores_test",),
    ),
    Mutation(
        "ROUGE-1 that counts a word of the answer again and again",
        "src/train/text_scores.cpp",
        "--found->second;\n        ++common;",
        "++common;",
        ("train_scores_test",),
    ),
    # GGUF files
    Mutation(
        "upper and lower halves of GGUF's bytes taken for each other",
        "src/store/gguf_formats.cpp",
        "byte_at(from, i % 16) >> (i / 16 * 4) & 15U;",
        "byte_at(from, i % 16) >> ((1 - i / 16) * 4) & 15U;",
        ("store_test",),
    ),
    Mutation(
        "the least value of a GGUF format taken off instead of added",
        "src/store/gguf_formats.cpp",
        "to[i] = scale * static_cast<float>(nibble(from + 4, i)) + least;",
        "to[i] = scale * static_cast<float>(nibble(from + 4, i)) - least;",
        ("store_test",),
    ),
    # Plugins
    Mutation(
        "a plugin's negative weights accepted",
        "src/fed/checked_method.cpp",
        "if (weight_C[c].item<double>() >= 0.0) continue;",
        "if (std::isfinite(weight_C[c].item<double>())) continue;",
        ("fed_checked_method",),
    ),
    Mutation(
        "a plugin's choice of more slots than the lora_rank accepted",
        "src/fed/checked_method.cpp",
        "if (count == lora_rank) continue;",
        "if (count >= lora_rank) continue;",
        ("fed_checked_method",),
    ),
    # Classification heads
    Mutation(
        "heads of dropped clients counted in the average's weights",
        "src/fed/head_average.cpp",
        "if (!report.dropped) samples += report.n_samples;",
        "samples += report.n_samples;",
        ("fed_core_test",),
    ),
    # Full fine-tuning
    Mutation(
        "a client of a full run starts from the weights of the one before",
        FULL,
        "copy_weights(received_, copy_);",
        "if (options.round == 0) copy_weights(received_, copy_);",
        ("train_test",),
    ),
    Mutation(
        "the gradient of a full run's step normalised by pass",
        FULL,
        "(loss_L.sum() / static_cast<double>(n_loss_tokens)).backward();",
        "loss_L.mean().backward();",
        ("train_test",),
    ),
    Mutation(
        "moments of a full run's optimiser kept from client to client",
        FULL,
        "if (tensor.moment1.defined()) tensor.moment1.zero_(), tensor.moment2.zero_();",
        "if (tensor.moment1.defined()) tensor.moment1.zero_();",
        ("train_test",),
    ),
    Mutation(
        "weights of a full run clipped one tensor at a time",
        "src/train/dense_update.cpp",
        "if (options.clip_norm > 0.0) clip_to<scalar_t>(tensors, options.clip_norm);",
        "for (std::size_t i = 0; options.clip_norm > 0.0 && i < tensors.size(); ++i) "
        "clip_to<scalar_t>(tensors.subspan(i, 1), options.clip_norm);",
        ("train_test",),
    ),
    Mutation(
        "dropped clients counted in the weights of a full run's mean",
        "src/fed/base_average.cpp",
        "if (!report.dropped) total += report.weights.front();",
        "total += report.weights.front();",
        ("fed_core_test",),
    ),
]  # fmt: skip
