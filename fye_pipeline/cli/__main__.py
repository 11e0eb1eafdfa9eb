from fye_pipeline.cli.entry import main

main()
