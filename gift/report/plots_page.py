"""The page that `dvc plots show` fills, with its scripts inside: DVC's own loads them from the network."""


def plots_page() -> str:
    """HTML with the anchor {plot_divs} where DVC puts its charts (plots.html_template in .dvc/config)."""
    import vl_convert

    # DVC's charts are of Vega-Lite 5; their inline scripts call a global vegaEmbed.
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.21")
    return (
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset='utf-8'>\n<title>DVC plots</title>\n"
        f"<script type='text/javascript'>{bundle}</script>\n</head>\n"
        "<body>\n{plot_divs}\n</body>\n</html>\n"
    )
