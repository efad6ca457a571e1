CASE
WHEN scene_id IN ('cockatoo', 'av1', 'bikes', 'echo', 'pancake', 'kodim05', 'kodim13', 'kodim19', 'kodim23') THEN 'test'
WHEN scene_id IN (
    'kodim03', 'kodim10', 'kodim15', 'kodim22', 'wesaturate_u76c0g', 'budgie__valley-midnight',
    'clic2025__2c1f84548ef99faec2b4f9bf12227c83',
    'clic2025__50d13125b665e0c4c1673264807bfc3cc7a217819329696843fea4c69aff8b91',
    'clic2025__8bb119b8ca17492392e1e3ea4b811b32', 'clic2025__c80999cd5533e448167cd9b3ccfa2a37',
    'clic2025__ebfd571f1c6824316047a29cb5f376eec15f56dd51821119c1842be068a8b950', 'gb82-screen__graph',
    'gb82__girl-lossless', 'gb82__mc3-lossless', 'gb82__prudential-lossless',
    'unsplash-deepin__jeremy-bishop-2e3hgvDnCpM-unsplash', 'unsplash-squeeze__shefta-shifa-tccP0BotaAA-unsplash',
    'car', 'davis_bmx-trees', 'davis_cows', 'davis_dance-twirl', 'davis_kite-surf'
) THEN 'validation'
ELSE 'train'
END
