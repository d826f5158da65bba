"""Which test covers which row of the parity checks, so that none can vanish.

A row is (what is compared, its tests, the tests that see it fail where its behaviour is broken); tests are `file::name`
in `tests/parity/`.
"""

from typing import NamedTuple


class Row(NamedTuple):
    about: str
    tests: tuple[str, ...]
    faults: tuple[str, ...]


DECODERS, FAULTS = "test_decoders.py::test_", ("test_decoder_faults.py::test_a_row_notices_what_is_broken",)
FEATURES = ("test_features.py::test_a_row_notices_what_is_broken",)
SOURCES = ("test_many_sources.py::test_many_sources",)
SOURCE_FAULTS = ("test_many_sources.py::test_a_row_notices_what_is_broken",)
CAUSAL = "test_causal_models.py::test_"
TABLE = "test_pyvene.py::test_an_intervention_is_that_of_pyvene_at_every_position"
TABLE_FAULTS = "test_pyvene.py::test_a_row_notices_what_is_broken"

ROWS = {
    "P1": Row("clean logits", (DECODERS + "logits_are_those_of_transformers_at_every_position",), FAULTS),
    "P2": Row("every tap", (DECODERS + "taps_are_what_hooks_see",), FAULTS),
    "P3": Row(
        "interchange at every tap, positions unequal",
        (DECODERS + "interchange_at_every_tap_is_what_hooks_do", TABLE),
        (*FAULTS, TABLE_FAULTS),
    ),
    "P4": Row("heads, other ones in each example", (DECODERS + "interchange_of_heads_is_what_hooks_do", TABLE), FAULTS),
    "P5": Row("ragged positions", (DECODERS + "ragged_positions_are_what_loops_over_examples_do",), FAULTS),
    "P6": Row(
        "zero, constant, mean, add, subtract",
        (DECODERS + "zero_constant_mean_added_and_subtracted_vectors_are_what_hooks_do", TABLE),
        FAULTS,
    ),
    "P7": Row(
        "partitions", ("test_features.py::test_a_part_of_a_partition_is_its_features_one_by_one", TABLE), FEATURES
    ),
    "P8": Row("low rank", ("test_features.py::test_low_rank_swaps_a_subspace_and_leaves_its_complement",), FEATURES),
    "P9": Row(
        "boundless",
        (
            "test_features.py::test_a_learned_width_is_a_row_of_sigmoids_and_at_last_a_prefix",
            "test_features.py::test_the_boundary_of_pyvene_halves_the_first_feature_and_ours_does_not",
        ),
        FEATURES,
    ),
    "P10": Row("masks", ("test_features.py::test_a_mask_is_soft_while_it_trains_and_whole_at_the_end",), FEATURES),
    "P11": Row(
        "principal components",
        ("test_features.py::test_principal_components_are_swapped_in_their_units_and_all_of_them_are_the_state",),
        FEATURES,
    ),
    "P12": Row(
        "features of a sparse autoencoder",
        ("test_autoencoders.py::test_latents_are_those_of_pytorch_and_what_they_do_not_say_stays",),
        ("test_autoencoders.py::test_the_row_notices_what_is_broken",),
    ),
    "P13": Row("recording at positions", (DECODERS + "recording_at_positions_gives_each_its_own_vector",), FAULTS),
    "P14": Row("recording after an edit", (DECODERS + "recording_after_an_edit_upstream_sees_it",), FAULTS),
    "P15": Row("several sources", SOURCES, SOURCE_FAULTS),
    "P16": Row(
        "order, links and overlap",
        SOURCES,
        (
            *SOURCE_FAULTS,
            "test_many_sources.py::test_edits_of_which_one_is_dropped_are_noticed",
            "test_many_sources.py::test_an_overlap_that_is_let_through_is_noticed",
        ),
    ),
    "P17": Row("skipping", SOURCES, SOURCE_FAULTS),
    "P18": Row(
        "path patching",
        ("test_path_patching.py::test_two_passes_are_those_of_hooks",),
        ("test_path_patching.py::test_the_row_notices_what_is_broken",),
    ),
    "P19": Row("across layers", (DECODERS + "a_source_may_be_of_another_layer_and_component",), FAULTS),
    "P20": Row(
        "gradients",
        ("test_gradients.py::test_gradients_through_an_interchange_are_those_of_autograd",),
        ("test_gradients.py::test_the_row_notices_what_is_broken",),
    ),
    "P21": Row(
        "generation",
        ("test_generate.py::test_generation_is_that_of_transformers_with_hooks",),
        ("test_generate.py::test_the_row_notices_what_is_broken",),
    ),
    "P22": Row(
        "tables of causal models",
        (
            CAUSAL + "runs_have_the_same_value_of_every_variable",
            CAUSAL + "runs_under_an_intervention_have_the_same_value_of_every_variable",
            CAUSAL + "interchanges_of_every_variable_have_the_same_value_of_every_variable",
        ),
        (CAUSAL + "a_row_notices_what_is_broken",),
    ),
    "P23": Row(
        "labels of counterfactual pairs",
        (
            CAUSAL + "labels_are_the_outputs_of_its_interchanges",
            CAUSAL + "labels_of_its_counterfactual_data_set_are_ours_given_its_pairs",
        ),
        (
            CAUSAL + "a_row_notices_what_is_broken",
            CAUSAL + "a_data_set_of_its_pairs_notices_what_is_broken",
        ),
    ),
    "P24": Row(
        "200 steps of DAS",
        ("test_training.py::test_two_hundred_steps_of_das_are_those_of_pytorch",),
        ("test_training.py::test_the_row_notices_what_is_broken",),
    ),
    "P25": Row(
        "no residue",
        ("test_residue.py::test_a_run_that_failed_leaves_nothing_behind",),
        ("test_residue.py::test_an_edit_that_stays_is_noticed",),
    ),
    "P26": Row(
        "state independence",
        ("test_residue.py::test_positions_of_one_call_are_not_those_of_the_next",),
        ("test_residue.py::test_positions_that_stay_are_noticed",),
    ),
}
