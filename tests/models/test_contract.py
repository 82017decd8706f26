"""What holds for the models that have no file of tests about it of their own."""

SMALL = {
    "width": 16,
    "branch_width": 16,
    "neighbor_depth": 1,
    "neighbor_heads": 2,
    "slide_depth": 1,
    "slide_heads": 2,
    "fusion_heads": 2,
    "n_groups": 4,
    "group_iterations": 3,
}


def test_ridge_keeps_the_contract(check_contract):
    check_contract("ridge", {}, {})


def test_gene_dml_keeps_the_contract(check_contract):
    check_contract("gene-dml", SMALL, {"max_epochs": 2})


def test_ridge_without_a_penalty_learns_64_spots_by_heart(fit_quality):
    assert fit_quality("ridge", {"alpha_min": 1e-6, "alpha_max": 1e-5, "n_alphas": 2}) > 0.95
